"""Our normalisation layers on the recorded inputs."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import numpy as np

from nn.layers.norm import BatchNorm, GroupNorm, LayerNorm, RMSNorm
from tests.golden_store import Record
from tests.vjp import values_and_gradients


def tolerance(variant: str) -> float:
    return 2e-6


def compute(variant: str, record: Record) -> dict[str, np.ndarray]:
    """The names are those of the record."""
    inputs, about = record.inputs, record.about
    eps = about["eps"]
    layers = {
        "layer": LayerNorm(eps=eps),
        "rms": RMSNorm(eps=eps),
        "llama_rms": RMSNorm(eps=eps),
        "group": GroupNorm(groups=about["groups"], eps=eps),
    }
    found: dict[str, np.ndarray] = {}

    def run(name: str, layer: nn.Module, x: np.ndarray, **state: Any) -> None:
        keys = ("scale",) if "rms" in name else ("scale", "bias")

        def apply(x: jax.Array, **params: jax.Array) -> Any:
            out = layer.apply({"params": params, **state}, x, mutable=["batch_stats"])
            return out[0]

        arguments = {"x": x} | {key: inputs[key] for key in keys}
        results = values_and_gradients(apply, arguments, inputs[f"ct/{name}"])
        found.update({f"{name}/{key}": value for key, value in results.items()})

    for name, layer in layers.items():
        run(name, layer, inputs["x"])
    mean, var = np.zeros_like(inputs["scale"]), np.ones_like(inputs["scale"])
    for step in ("train0", "train1", "eval"):
        layer = BatchNorm(train=step != "eval", eps=eps, momentum=about["momentum"])
        state = {"batch_stats": {"mean": mean, "var": var}}
        run(f"batch/{step}", layer, inputs[f"batch/{step}"], **state)
        params = {key: inputs[key] for key in ("scale", "bias")}
        _, updated = layer.apply(
            {"params": params, **state}, inputs[f"batch/{step}"], mutable=["batch_stats"]
        )
        if step != "eval":
            mean, var = (np.asarray(updated["batch_stats"][key]) for key in ("mean", "var"))
        found |= {f"batch/{step}/mean": mean, f"batch/{step}/var": var}
    return found
