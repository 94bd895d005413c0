"""Documents -> one stream of tokens -> rows of T tokens that know where documents begin.

Row i covers stream[i*T : i*T + T + 1]: its inputs are the first T of these tokens, its targets the
last T. Rows share one token, so every token but the first of each document is a target exactly
once in an epoch, whatever T is. The last row is padded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launch.data.source import Example, Source, Spec, check_sequence_length

_TOKENS, _STARTS, _ABOUT = "tokens.bin", "starts.npy", "stream.json"


@dataclasses.dataclass(frozen=True)
class Stream:
    """Documents end to end.

    tokens (N,): unsigned integers, possibly a memory map. starts (D,) int64: where each document
    begins, increasing from 0; empty documents are left out. digest: of tokens and starts.
    """

    tokens: np.ndarray
    starts: np.ndarray
    digest: str

    def first(self, tokens: int) -> Stream:
        """The beginning of the stream; all of it where it is no longer than `tokens`."""
        if tokens >= len(self.tokens):
            return self
        return Stream(self.tokens[:tokens], self.starts[self.starts < tokens], self.digest)

    def continues(self) -> np.ndarray:
        """(N - 1,) bool: whether token j + 1 is in the same document as token j."""
        result = np.ones(max(len(self.tokens) - 1, 0), bool)
        result[self.starts[1:] - 1] = False
        return result


def token_type(vocabulary: int) -> np.dtype[Any]:
    """The smallest unsigned type that holds 0..vocabulary-1."""
    return np.min_scalar_type(max(vocabulary - 1, 0))


def join(documents: Iterable[np.ndarray], vocabulary: int) -> Stream:
    """The stream of `documents`, in memory; see `write` for the errors."""
    pieces = list(_checked(documents, vocabulary))
    tokens = np.concatenate(pieces) if pieces else np.zeros(0, token_type(vocabulary))
    starts = np.cumsum([0, *map(len, pieces[:-1])]) if pieces else np.zeros(0)
    starts = starts.astype(np.int64)
    digest = hashlib.sha256(tokens.data)
    return Stream(tokens, starts, _finished(digest, starts))


def write(documents: Iterable[np.ndarray], vocabulary: int, directory: Path) -> None:
    """Write the stream of `documents` to `directory`, one document in memory at a time.

    Raises ValueError, naming the document, for one that is not a list of tokens below `vocabulary`.
    """
    starts, length, digest = [], 0, hashlib.sha256()
    with open(directory / _TOKENS, "wb") as file:
        for piece in _checked(documents, vocabulary):
            starts.append(length)
            length += len(piece)
            digest.update(piece.data)
            file.write(piece.data)
    begins = np.array(starts, np.int64)
    np.save(directory / _STARTS, begins)
    about = {"dtype": token_type(vocabulary).name, "digest": _finished(digest, begins)}
    (directory / _ABOUT).write_text(json.dumps(about))


def read(directory: Path) -> Stream:
    """The stream that `write` left in `directory`, mapped rather than read into memory."""
    about = json.loads((directory / _ABOUT).read_text())
    dtype = np.dtype(about["dtype"])
    if (directory / _TOKENS).stat().st_size:
        tokens: np.ndarray = np.memmap(directory / _TOKENS, dtype, mode="r")
    else:  # an empty file cannot be mapped
        tokens = np.zeros(0, dtype)
    return Stream(tokens, np.load(directory / _STARTS, mmap_mode="r"), about["digest"])


def rows(stream: Stream, indices: Sequence[int], length: int) -> Example:
    """Rows `indices` of T = `length` tokens each, B in all.

    Returns arrays of shape (B, T), int32 but for the mask:
      inputs, targets: tokens; 0 in the padding.
      segments: the number of the document in the row, from 1; 0 in the padding.
      positions: the place in the document, counted from where it enters the row: below T.
      mask float32: 1 where the target is in the same document as the input.
    """
    begin = np.asarray(indices, np.int64)[:, None] * length
    index = begin + np.arange(length + 1)
    last = len(stream.tokens) - 1
    tokens = np.asarray(stream.tokens[np.minimum(index, last)], np.int32)
    document = np.searchsorted(stream.starts, index, side="right")
    place = index - np.maximum(stream.starts[document - 1], begin)
    number = document - document[:, :1] + 1
    real = index[:, 1:] <= last  # inputs that have a target
    same = document[:, 1:] == document[:, :-1]
    return {
        "inputs": tokens[:, :-1] * real,
        "targets": tokens[:, 1:] * real,
        "segments": (number[:, :-1] * real).astype(np.int32),
        "positions": (place[:, :-1] * real).astype(np.int32),
        "mask": (same & real).astype(np.float32),
    }


class PackedSource(Source):
    """The rows of a stream, as `rows` gives them."""

    def __init__(
        self,
        stream: Stream,
        sequence_length: int,
        *,
        name: str,
        version: str,
        vocabulary: int,
        split: str,
        options: Any,
    ) -> None:
        check_sequence_length(sequence_length)
        if len(stream.tokens) < 2:
            raise ValueError(
                f"data set {name}, split {split} has {len(stream.tokens)} tokens: "
                "a row needs at least 2"
            )
        spec = Spec("next_token", (sequence_length,), vocabulary, name, version)
        packing = {"sequence_length": sequence_length, "tokens": len(stream.tokens)}
        super().__init__(spec, split, options, packing=packing, content=stream.digest)
        self.stream = stream
        self._length = -(-(len(stream.tokens) - 1) // sequence_length)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self._length:
            raise IndexError(f"row {index} of {self._length}")
        return {key: array[0] for key, array in self.read([index]).items()}

    def read(self, indices: Sequence[int]) -> Example:
        return rows(self.stream, indices, self.spec.input_shape[0])


def _checked(documents: Iterable[np.ndarray], vocabulary: int) -> Iterable[np.ndarray]:
    """The documents that are not empty, in the stream's type."""
    for number, document in enumerate(documents):
        tokens = np.asarray(document)
        if not tokens.size:
            continue
        if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
            raise ValueError(
                f"document {number} has shape {tokens.shape} and type {tokens.dtype}: "
                "it must be a list of integers"
            )
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= vocabulary:
            raise ValueError(
                f"document {number} has token {low if low < 0 else high}: tokens must be between 0 "
                f"and vocabulary - 1 = {vocabulary - 1}"
            )
        yield np.ascontiguousarray(tokens, token_type(vocabulary))


def _finished(digest: Any, starts: np.ndarray) -> str:
    digest.update(np.ascontiguousarray(starts).data)
    return str(digest.hexdigest())
