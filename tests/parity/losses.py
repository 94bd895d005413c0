"""Our losses on the recorded inputs."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from nn import losses
from tests.golden_store import Record

Array = jax.Array


def tolerance(variant: str) -> float:
    return {"float32": 1e-6, "float64": 1e-12}[variant]


def cross_entropy(smoothing: float = 0.0, z_loss: float = 0.0) -> Callable[..., Array]:
    def loss(logits: Array, labels: Array) -> Array:
        return losses.softmax_cross_entropy(
            logits, labels, label_smoothing=smoothing, z_loss=z_loss
        )

    return loss


def clip(q: Array, k: Array) -> Array:
    both = losses.info_nce(q, k, temperature=0.2), losses.info_nce(k, q, temperature=0.2)
    return (both[0].mean() + both[1].mean()) / 2


CASES: dict[str, tuple[Callable[..., Array], tuple[str, ...]]] = {
    "mse": (losses.mse, ("x", "y")),
    "mae": (losses.mae, ("x", "y")),
    "huber": (lambda x, y: losses.huber(x, y, delta=0.7), ("x", "y")),
    "bce": (losses.binary_cross_entropy, ("x", "chance")),
    "ce": (cross_entropy(), ("logits", "labels")),
    "ce_smooth": (cross_entropy(0.1), ("logits", "labels")),
    "ce_z": (cross_entropy(z_loss=0.01), ("logits", "labels")),
    "ce_soft": (cross_entropy(), ("logits", "targets")),
    "ce_soft_smooth": (cross_entropy(0.1), ("logits", "targets")),
    "triplet": (lambda a, p, n: losses.triplet(a, p, n, 0.5), ("x", "y", "third")),
    "contrastive": (lambda a, b, same: losses.contrastive(a, b, same, 2.0), ("x", "y", "same")),
    "nt_xent": (lambda a, b: losses.nt_xent(a, b, temperature=0.3), ("x", "y")),
    "info_nce": (lambda q, k: losses.info_nce(q, k, temperature=0.2), ("x", "y")),
    "clip": (clip, ("x", "y")),
    "kl_gaussian": (losses.kl_gaussian, ("x", "logvar", "y", "logvar2")),
    "kl_categorical": (losses.kl_categorical, ("logits", "other")),
}


def compute(variant: str, record: Record) -> dict[str, np.ndarray]:
    """Values and gradients in every float argument; the names are those of the record."""
    with jax.enable_x64(variant == "float64"):
        inputs = {key: jnp.asarray(value) for key, value in record.inputs.items()}

        def run(name: str) -> dict[str, Array]:
            function, keys = CASES[name]
            floats = [k for k in keys if jnp.issubdtype(inputs[k].dtype, jnp.inexact)]

            def of_floats(*values: Array) -> Array:
                given = {**inputs, **dict(zip(floats, values, strict=True))}
                return function(*(given[k] for k in keys))

            y, pull = jax.vjp(of_floats, *(inputs[k] for k in floats))
            grads = zip(floats, pull(inputs[f"ct/{name}"]), strict=True)
            return {f"{name}/y": y} | {f"{name}/d_{k}": g for k, g in grads}

        found = jax.jit(lambda: {k: v for name in CASES for k, v in run(name).items()})()
        return {key: np.asarray(value) for key, value in found.items()}
