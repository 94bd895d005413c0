"""Our rotary embedding and sinusoids on the recorded positions."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from nn.layers.position import Rotary, rotate, sinusoids
from tests.golden_store import Record

# transformers' word -> ours
OURS = {
    "rope_theta": "theta",
    "factor": "factor",
    "original_max_position_embeddings": "original_length",
    "low_freq_factor": "low",
    "high_freq_factor": "high",
    "beta_slow": "low",
    "beta_fast": "high",
}


def tolerance(variant: str) -> dict[str, float]:
    # An angle is position * frequency in float32: the position times a rounding of the frequency.
    frequencies = {f"{name}/frequencies": 1e-6 for name in ("none", "ntk", "yarn", "llama3")}
    return {"": 2e-5} | frequencies


def rotary(name: str, given: dict[str, Any], about: Any) -> Rotary:
    options = {OURS[key]: value for key, value in given.items() if key in OURS}
    scaling = {"none": "none", "other_base": "none"}
    options["scaling"] = scaling[name] if name in scaling else name
    if name == "ntk":
        options["factor"] = about["ntk_factor"]
    return Rotary(**{"original_length": about["original_length"]} | options)


def compute(variant: str, record: Record) -> dict[str, np.ndarray]:
    """The names are those of the record."""
    x, positions = jnp.asarray(record.inputs["x"]), jnp.asarray(record.inputs["positions"])
    found = {}
    for name, given in record.about["scalings"].items():
        made = rotary(name, given, record.about)
        found[f"{name}/frequencies"] = made.frequencies(x.shape[-1])[0].astype(np.float32)
        found[f"{name}/turned"] = np.asarray(rotate(x, made.table(positions, x.shape[-1])))
    for width in (8, 13):
        found[f"sinusoids/{width}"] = np.asarray(sinusoids(positions, width))
    return found
