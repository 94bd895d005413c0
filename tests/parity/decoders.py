"""Our transformer on the files of the record: loaded, differentiated, saved again."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nn import losses
from nn.families.transformer import Model
from nn.pretrained import Format, find, from_ours, to_ours
from tests.golden_store import Record


def tolerance(variant: str) -> dict[str, float]:
    # Key biases have a gradient that all but cancels.
    return {"": 1e-5, "grad/": 2e-5}


def format_of(record: Record) -> Format:
    return find(record.about["config"]["model_type"])


def file_of(record: Record) -> dict[str, np.ndarray]:
    """The tensors of the published file."""
    prefix = "file/"
    return {k.removeprefix(prefix): x for k, x in record.inputs.items() if k.startswith(prefix)}


def odd(record: Record) -> dict[str, tuple[jax.Array, jax.Array | None]]:
    """Positions and segments of the record's odd inputs, which are the last tokens of padded rows,
    single tokens, or rows that begin late."""
    ids, about = record.inputs["ids"], record.about
    columns = np.arange(ids.shape[1])
    known = (columns >= ids.shape[1] - np.asarray(about["lengths"])[:, None]).astype(np.int32)
    places = np.maximum(known.cumsum(axis=1) - 1, 0).astype(np.int32)
    later = np.broadcast_to(columns + about["beyond"], ids.shape).astype(np.int32)
    inputs: dict[str, Any] = {
        "padded": (jnp.asarray(places), jnp.asarray(known)),
        "single": (jnp.zeros_like(ids[:, :1]), None),
        "beyond": (jnp.asarray(later), None),
    }
    return {k: inputs[k.removeprefix("odd/")] for k in record.outputs if k.startswith("odd/")}


def compute(variant: str, record: Record) -> dict[str, np.ndarray]:
    """Logits, loss, and its gradient for every tensor under the file's name."""
    table = format_of(record)
    config = table.config_from(record.about["config"])
    params = to_ours(table, file_of(record), config)
    ids = jnp.asarray(record.inputs["ids"])

    def loss(params: dict[str, object]) -> tuple[jax.Array, jax.Array]:
        model, variables = Model(config, train=True), {"params": params}
        hidden, _, aux = model.apply(variables, ids, method="hidden")
        logits = model.apply(variables, hidden, method="head")
        value = losses.softmax_cross_entropy(logits[:, :-1], ids[:, 1:]).mean()
        return value + aux.get("loss", 0.0), logits

    model = Model(config)
    extra = {
        name: jax.jit(model.apply)(
            {"params": params},
            ids[:, : places.shape[1]],
            positions_BT=places,
            segments_BT=segments,
        )
        for name, (places, segments) in odd(record).items()
    }
    if "odd/padded" in extra:
        extra["odd/padded"] *= odd(record)["odd/padded"][1][..., None]
    (value, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    saved = from_ours(table, gradients, config)
    return {
        **{name: np.asarray(x) for name, x in extra.items()},
        "loss": np.asarray(value),
        "logits": np.asarray(logits),
        **{f"grad/{name}": x for name, x in saved.items()},
    }
