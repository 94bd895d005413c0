"""Our Whisper on the files of the record: loaded, differentiated, saved again."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nn import losses
from nn.families.whisper import Model
from nn.pretrained import find, from_ours, to_ours
from tests.golden_store import Record


def tolerance(variant: str) -> dict[str, float]:
    return {"": 1e-5, "grad/": 2e-5}


def file_of(record: Record) -> dict[str, np.ndarray]:
    """The tensors of the published file."""
    prefix = "file/"
    return {k.removeprefix(prefix): x for k, x in record.inputs.items() if k.startswith(prefix)}


def compute(variant: str, record: Record) -> dict[str, np.ndarray]:
    """Memory, logits, loss, and its gradient for every trained tensor under the file's name."""
    table = find("whisper")
    config = table.config_from(record.about["config"])
    params = to_ours(table, file_of(record), config)
    frames, ids, targets = (jnp.asarray(record.inputs[x]) for x in ("frames", "ids", "targets"))
    mask = targets >= 0

    def loss(params: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        model, variables = Model(config, train=True), {"params": params}
        memory = model.apply(variables, frames, method="encode")
        hidden, _, _ = model.apply(variables, ids, memory=memory, method="hidden")
        logits = model.apply(variables, hidden, method="head")
        each = losses.softmax_cross_entropy(logits, jnp.where(mask, targets, 0))
        return jnp.sum(each * mask) / jnp.sum(mask), (memory, logits)

    (value, (memory, logits)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    saved = from_ours(table, gradients, config)
    constants = table.table(config).constants
    return {
        "loss": np.asarray(value),
        "memory": np.asarray(memory),
        "logits": np.asarray(logits),
        **{f"grad/{name}": x for name, x in saved.items() if name not in constants},
    }
