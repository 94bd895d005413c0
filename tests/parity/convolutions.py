"""Our convolutions and pools on the recorded inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from nn.layers import conv as layers
from tests.golden_store import Record
from tests.vjp import values_and_gradients

OURS = {"stride": "strides", "kernel_size": "window"}  # torch's word -> ours


def tolerance(variant: str) -> float:
    return 2e-6


def translated(options: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    """Options under our names, lists as tuples."""
    renamed = {OURS[key] if key in OURS else key: value for key, value in options.items()}
    renamed = {k: tuple(v) if isinstance(v, list) else v for k, v in renamed.items()}
    return defaults | renamed


def convolve(layer: type[layers.Conv], options: dict[str, Any]) -> Callable[..., jax.Array]:
    def apply(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> Any:
        made = layer(kernel.shape[-1], kernel.shape[:-2], **translated(options, padding=0))
        return made.apply({"params": {"kernel": kernel, "bias": bias}}, x)

    return apply


def pool(name: str, options: dict[str, Any]) -> Callable[..., jax.Array]:
    function = layers.max_pool if name.startswith("max") else layers.avg_pool
    return lambda x: function(x, **translated(options))


def compute(variant: str, record: Record) -> dict[str, np.ndarray]:
    """The names are those of the record."""
    about = record.about
    functions: dict[str, Callable[..., jax.Array]] = {"pool/global": layers.global_avg_pool}
    for name, options in about["conv"].items():
        functions[f"conv/{name}"] = convolve(layers.Conv, options)
    for name, options in about["transpose"].items():
        functions[f"transpose/{name}"] = convolve(layers.ConvTranspose, options)
    for name, options in about["pool"].items():
        functions[f"pool/{name}"] = pool(name, options)
    found = {}
    for name, function in functions.items():
        given = {
            key.removeprefix(f"{name}/"): x
            for key, x in record.inputs.items()
            if key.startswith(f"{name}/")
        }
        results = values_and_gradients(function, given, given.pop("ct"))
        found |= {f"{name}/{key}": x for key, x in results.items()}
    return found
