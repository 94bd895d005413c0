"""Images with one text per row, some of which do not count."""

from __future__ import annotations

from typing import Any

import numpy as np


def batch(family: Any, config: Any, size: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    images, tokens = family.example(config, size)
    return {
        "inputs": rng.normal(size=images.shape).astype(np.float32),
        "tokens": rng.integers(0, config.vocab_size, tokens.shape).astype(np.int32),
        "mask": (np.arange(size) % 5 > 0).astype(np.float32),
    }
