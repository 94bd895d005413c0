"""Our ResNet on the files of the record: loaded, differentiated, saved again."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nn import losses
from nn.families.resnet import Model
from nn.pretrained import from_ours, resnet, to_ours
from tests.golden_store import Record


def tolerance(variant: str) -> float:
    return 1e-6


def file_of(record: Record) -> dict[str, np.ndarray]:
    """The tensors of the published file."""
    prefix = "file/"
    return {k.removeprefix(prefix): x for k, x in record.inputs.items() if k.startswith(prefix)}


def compute(variant: str, record: Record) -> dict[str, np.ndarray]:
    """Logits of evaluation and training, loss, gradients and statistics under the file's names."""
    with jax.enable_x64(True):
        return outputs(record, jnp.float64)


def outputs(record: Record, dtype: Any) -> dict[str, np.ndarray]:
    """What the record holds, computed in `dtype` and rounded to float32."""
    config = resnet.config_from(record.about["config"])
    variables = to_ours(resnet, file_of(record), config)
    images, labels = jnp.asarray(record.inputs["images"]), jnp.asarray(record.inputs["labels"])

    def loss(params: Any) -> tuple[jax.Array, Any]:
        logits, updated = Model(config, dtype, train=True).apply(
            variables | {"params": params}, images, mutable=["batch_stats"]
        )
        return losses.softmax_cross_entropy(logits, labels).mean(), (logits, updated)

    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, (logits, updated)), gradients = gradient(variables["params"])
    after = from_ours(resnet, {"params": gradients, **updated}, config)
    found = {
        "eval": jax.jit(Model(config, dtype).apply)(variables, images),
        "train": logits,
        "loss": value,
    }
    for name, x in after.items():
        if not name.endswith(resnet.TRACKED):
            found[f"{'statistics' if '.running_' in name else 'grad'}/{name}"] = x
    return {key: np.asarray(value, np.float32) for key, value in found.items()}
