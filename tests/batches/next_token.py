"""Tokens, with uneven masks and two documents to a row."""

from __future__ import annotations

from typing import Any

import numpy as np


def batch(family: Any, config: Any, size: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    length = family.example(config, size)[0].shape[1]
    tokens = rng.integers(0, config.vocab_size, (size, length + 1)).astype(np.int32)
    first = np.arange(length) < length // 3
    rows = np.ones((size, 1), np.int32)
    place = np.where(first, np.arange(length), np.arange(length) - length // 3)
    return {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segments": rows * np.where(first, 1, 2).astype(np.int32),
        "positions": rows * place.astype(np.int32),
        "mask": (rng.random((size, length)) > 0.1).astype(np.float32),
    }
