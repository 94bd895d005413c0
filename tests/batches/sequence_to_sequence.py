"""Two rows of tokens, the first padded, the second with uneven masks and two documents."""

from __future__ import annotations

from typing import Any

import numpy as np


def batch(family: Any, config: Any, size: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    heard, written = family.example(config, size)
    longer, length = heard.shape[1], written.shape[1]
    sound = heard.ndim == 3  # frames, of which the encoder makes one position of two
    longer //= 1 + sound
    first, cut = np.arange(length) < length // 3, longer // 2
    place = np.where(first, np.arange(length), np.arange(length) - length // 3)
    # Documents of other lengths than those of the targets, and padding at the end of most rows.
    source = np.where(np.arange(longer) < cut, 1, 2)
    padded = np.arange(longer) >= longer - np.arange(size)[:, None] % 4
    rows = np.ones((size, 1), np.int32)
    targets = rng.integers(0, config.vocab_size, (size, length + 1)).astype(np.int32)
    return {
        "inputs": (
            rng.normal(size=heard.shape).astype(np.float32)
            if sound
            else rng.integers(0, config.vocab_size, heard.shape).astype(np.int32)
        ),
        "input_segments": np.where(padded, 0, source).astype(np.int32),
        "decoder_inputs": targets[:, :-1],
        "targets": targets[:, 1:],
        "segments": rows * np.where(first, 1, 2).astype(np.int32),
        "positions": rows * place.astype(np.int32),
        "mask": (rng.random((size, length)) > 0.1).astype(np.float32),
    }
