"""Random order and random draws as pure functions of numbers, the same on every host and machine.

The order is a permutation computed for the asked positions only, from integer arithmetic: it needs
no memory whatever the length, and no library can change it from one version to the next.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = 8


def mix64(x: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit words that looks random (the finaliser of SplitMix64)."""
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def word(*numbers: int) -> int:
    """One 64-bit word that depends on every one of `numbers` and on their order."""
    state = np.zeros(1, np.uint64)
    for number in numbers:
        state = mix64(state ^ np.array([number % 2**64], np.uint64))
    return int(state[0])


def generator(seed: int, stream: str, index: int) -> np.random.Generator:
    """The generator that belongs to number `index` of `stream` under `seed`."""
    key: Any = _Key(_stream_key(seed, stream), index)
    return np.random.Generator(np.random.Philox(key))


class _Key(np.random.bit_generator.ISeedSequence):
    """A key as it is: `Philox(key=...)` asks the system for entropy too, four times the cost."""

    def __init__(self, *words: int) -> None:
        self._words = np.array(words, np.uint64)

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        del dtype  # Philox asks for two words of 64 bits
        assert n_words == len(self._words)
        return self._words


@functools.cache
def _stream_key(seed: int, stream: str) -> int:
    return word(seed, int.from_bytes(stream.encode()[:8], "little"))


def permuted(keys: np.ndarray, positions: np.ndarray, length: int) -> np.ndarray:
    """Where `positions` (in 0..length-1) go under the permutation that belongs to each key.

    A Feistel network on the grid a x b that just holds `length` points, walked on until it is back
    inside: Black and Rogaway, "Ciphers with arbitrary finite domains" (2002), method 3.

    Args:
      keys: (n,) uint64. positions: (n,) integers. Returns (n,) int64.
    """
    a = math.isqrt(max(length - 1, 0)) + 1
    b = -(-length // a)
    rows, columns = np.uint64(a), np.uint64(b)
    result = positions.astype(np.uint64)
    todo = np.arange(len(result))
    left: np.ndarray
    right: np.ndarray
    while len(todo):
        left, right = np.divmod(result[todo], columns)
        key = keys[todo]
        for turn in range(_ROUNDS):
            key = key + _GOLDEN  # another function in each round
            if turn % 2:
                right = (right + mix64(key ^ left) % columns) % columns
            else:
                left = (left + mix64(key ^ right) % rows) % rows
        result[todo] = left * columns + right
        todo = todo[result[todo] >= length]
    return result.astype(np.int64)


def shuffled(seed: int, positions: np.ndarray, length: int) -> np.ndarray:
    """The records at `positions` of the endless stream that visits all of 0..length-1 once per
    epoch, each epoch in another order.

    Args:
      positions: (n,) int64, from 0. Returns (n,) int64 below `length`.
    """
    epochs, inside = np.divmod(positions, length)
    keys = mix64(np.uint64(word(seed, 0x5F0F)) ^ mix64(epochs.astype(np.uint64)))
    return permuted(keys, inside, length)
