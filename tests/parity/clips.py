"""Our two towers on the files of the record: loaded, differentiated, saved again."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nn.families.clip import Model
from nn.objectives import contrast
from nn.pretrained import clip, from_ours, to_ours
from tests.golden_store import Record
from tests.parity.vits import file_of, settled

LOSSES = {"clip": "softmax", "siglip": "sigmoid"}


def tolerance(variant: str) -> dict[str, float]:
    return {"": 1e-5, "grad/": 2e-5}


def compute(variant: str, record: Record) -> dict[str, np.ndarray]:
    """Features, logits, loss, and its gradient for every tensor under the file's name."""
    config = clip.config_from(record.about["config"])
    params = to_ours(clip, file_of(record), config)
    images, tokens = jnp.asarray(record.inputs["images"]), jnp.asarray(record.inputs["tokens"])
    batch = {"inputs": images, "tokens": tokens, "mask": jnp.ones(len(images))}
    options = contrast.Config(loss=LOSSES[config.kind])
    model: Any = Model(config)

    def loss(params: Any) -> tuple[jax.Array, Any]:
        variables, key = {"params": params}, jax.random.key(0)
        found, _ = contrast.sums(options, model, variables, batch, key, train=True)
        total, count = found["loss"]
        image, text, *_ = model.apply(variables, images, tokens, method="features")
        return total / count, (image, text, model.apply(variables, images, tokens))

    (value, outputs), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    saved = settled(from_ours(clip, gradients, config))
    found = dict(zip(("image", "text", "logits"), outputs, strict=True)) | {"loss": value}
    found |= {f"grad/{name}": x for name, x in saved.items()}
    return {key: np.asarray(x) for key, x in found.items()}
