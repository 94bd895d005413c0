"""Our encoder on the files of the record: loaded, differentiated, saved again."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nn import losses
from nn.families.bert import Config, Model
from nn.pretrained import find, from_ours, to_ours
from tests.golden_store import Record

# Biases of keys, where positions are not rotary: added to the scores of all keys alike.
SILENT = re.compile(r"\.(key|k_lin)\.bias$")


def tolerance(variant: str) -> dict[str, float]:
    return {"": 1e-5, "grad/": 2e-5}


def file_of(record: Record) -> dict[str, np.ndarray]:
    """The tensors of the published file."""
    prefix = "file/"
    return {k.removeprefix(prefix): x for k, x in record.inputs.items() if k.startswith(prefix)}


def outputs(config: Config, params: Any, given: Any, dtype: Any = jnp.float32) -> dict[str, Any]:
    """Outputs by name, those of padding zero."""
    types = given["types"] if "types" in given else None
    model = Model(config, dtype=dtype, train=True)
    out = model.apply({"params": params}, given["ids"], None, given["mask"], types)
    if config.head == "masked_token_and_next_sentence":
        tokens, pair = out
        return {"logits": tokens * given["mask"][..., None], "pair": pair}
    if config.head in ("pooled", "class"):
        return {"logits": out}
    return {"logits": out * given["mask"].reshape(*given["mask"].shape, *[1] * (out.ndim - 2))}


def loss_of(config: Config, found: dict[str, Any], given: Any) -> jax.Array:
    logits, mask = found["logits"], given["mask"]
    if config.head == "pooled":
        return jnp.square(logits).mean()
    if config.head == "class":
        return losses.softmax_cross_entropy(logits, given["row"]).mean()
    if config.head == "replaced_token":
        each = losses.binary_cross_entropy(logits, given["replaced"].astype(jnp.float32))
    else:
        each = losses.softmax_cross_entropy(logits, jnp.maximum(given["tokens"], 0))
    loss = jnp.sum(each * mask) / mask.sum()
    if "pair" in found:
        loss += losses.softmax_cross_entropy(found["pair"], given["row"]).mean()
    return loss


def compute(variant: str, record: Record) -> dict[str, np.ndarray]:
    """Outputs, loss, and its gradient for every tensor under the file's name."""
    format_ = find(record.about["config"]["model_type"])
    config = format_.config_from(record.about["config"])
    params = to_ours(format_, file_of(record), config)
    given = {k: jnp.asarray(x) for k, x in record.inputs.items() if not k.startswith("file/")}

    def loss(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        found = outputs(config, params, given)
        return loss_of(config, found, given), found

    (value, found), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    saved = from_ours(format_, gradients, config)
    largest = max(float(np.abs(x).max()) for x in saved.values())
    for name in [name for name in saved if SILENT.search(name)]:
        assert np.abs(saved.pop(name)).max() < 1e-6 * largest, name
    return {
        "loss": np.asarray(value),
        **{name: np.asarray(x) for name, x in found.items()},
        **{f"grad/{name}": x for name, x in saved.items()},
    }
