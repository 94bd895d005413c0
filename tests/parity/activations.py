"""Our activations on the recorded inputs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from nn import activations
from tests.golden_store import Record


def tolerance(variant: str) -> float:
    return {"float32": 1e-6, "float64": 1e-12}[variant]


def compute(variant: str, record: Record) -> dict[str, np.ndarray]:
    """Values and gradients; the names are those of the record."""
    with jax.enable_x64(variant == "float64"):
        x, other, ct, slope = (jnp.asarray(record.inputs[k]) for k in ("x", "other", "ct", "slope"))

        def run(name: str) -> dict[str, jax.Array]:
            function = activations.get(name)
            if activations.is_gated(name):
                arguments = {"gate": x, "up": other}
            elif name == "prelu":
                arguments = {"x": x, "slope": slope}
            else:
                arguments = {"x": x}
            y, pull = jax.vjp(function, *arguments.values())
            grads = zip(arguments, pull(ct), strict=True)
            return {f"{name}/y": y} | {f"{name}/d{key}": value for key, value in grads}

        names = [*activations.ACTIVATIONS, *activations.GATED]
        found = jax.jit(lambda: {k: v for name in names for k, v in run(name).items()})()
        return {key: np.asarray(value) for key, value in found.items()}
