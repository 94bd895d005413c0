"""Tokens of which a third are replaced, beside the original ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.batches import masked_token


def batch(family: Any, config: Any, size: int) -> dict[str, np.ndarray]:
    made = masked_token.batch(family, config, size)
    rng = np.random.default_rng(1)
    inputs = made["inputs"]
    other = rng.integers(0, config.vocab_size, inputs.shape).astype(np.int32)
    replaced = np.where(rng.random(inputs.shape) < 0.33, other, inputs)
    return made | {"inputs": replaced, "targets": inputs}
