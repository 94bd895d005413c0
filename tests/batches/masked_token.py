"""Tokens with padding, kinds, uneven masks; labels of sentences for a model that has a head."""

from __future__ import annotations

from typing import Any

import numpy as np


def batch(family: Any, config: Any, size: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    length = family.example(config, size)[0].shape[1]
    column, lengths = np.arange(length)[None], rng.integers(length // 2, length + 1, (size, 1))
    real = column < lengths
    made = {
        "inputs": rng.integers(0, config.vocab_size, (size, length)).astype(np.int32),
        "segments": real.astype(np.int32),
        "mask": (real & (rng.random((size, length)) > 0.1)).astype(np.float32),
    }
    if config.token_types:
        made["types"] = (column > lengths // 2).astype(np.int32) * (config.token_types - 1)
    if config.head == "masked_token_and_next_sentence":
        made["next_sentence"] = rng.integers(0, 2, (size,)).astype(np.int32)
        made["mask"][3] = 0  # a row that fills the batch up
    return made
