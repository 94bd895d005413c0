"""Anything with one label per row, some of which do not count."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np


def batch(family: Any, config: Any, size: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    (inputs,) = family.example(config, size)
    outputs = jax.eval_shape(
        lambda: family.Model(config).init_with_output(jax.random.key(0), inputs)
    )[0].shape[-1]
    return {
        "inputs": rng.normal(size=inputs.shape).astype(np.float32),
        "labels": rng.integers(0, outputs, (size,)).astype(np.int32),
        "mask": (np.arange(size) % 5 > 0).astype(np.float32),
    }
