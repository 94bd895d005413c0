"""Text to tokens and back: bytes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def encode(text: str, vocabulary: int) -> list[int]:
    """The UTF-8 bytes of `text`; ValueError where the vocabulary is no vocabulary of bytes."""
    if vocabulary < 256:
        raise ValueError(f"model.vocab_size={vocabulary}: text needs the 256 bytes")
    return list(text.encode("utf-8"))


def decode(tokens: Iterable[int]) -> str:
    """Text of byte tokens; what is no UTF-8 becomes the replacement character."""
    values = np.asarray(list(tokens), np.int64)
    return bytes(values[(values >= 0) & (values < 256)].astype(np.uint8)).decode(
        "utf-8", errors="replace"
    )


def pad(rows: list[list[int]], multiple: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of tokens padded on the right, and their lengths; a multiple of `multiple` rows.

    Rows that only fill up are copies of the first.
    """
    rows = rows + [rows[0]] * (-len(rows) % multiple)
    lengths = np.asarray([len(row) for row in rows], np.int32)
    padded = np.zeros((len(rows), int(lengths.max())), np.int32)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded, lengths
