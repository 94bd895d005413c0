"""Made-up pairs of rows for encoder-decoders: a word of symbols, and the same word backwards.

Words have `shortest` symbols at least and at most as many as fit; what is written ends with a token
of its own, and rows are padded. Every example is a pure function of (content_seed, split, index);
nothing is stored. Size: `examples` per split. No source, no licence.
"""

from __future__ import annotations

import dataclasses
import os

import numpy as np

from launch.data import randomness
from launch.data.source import SPLITS, Example, Source, Spec, check_choice, check_range

VERSION = "1.0.0"
START, END, FIRST = 0, 1, 2  # tokens: before what is written, after it, the first symbol


@dataclasses.dataclass(frozen=True)
class Config:
    symbols: int = 30  # different ones
    shortest: int = 0  # symbols of a word, at least; 0: all words are as long as fit
    examples: int = 65536  # per split; validation and test have a sixteenth
    content_seed: int = 0  # another number, other data

    def __post_init__(self) -> None:
        check_range("symbols", self.symbols, 2)
        check_range("shortest", self.shortest, 0)
        check_range("examples", self.examples, 16)


class Reversal(Source):
    """Examples computed when they are asked for."""

    def __len__(self) -> int:
        return int(self.options.examples // (1 if self.split == "train" else 16))

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        options, (length,) = self.options, self.spec.input_shape
        generator = randomness.generator(options.content_seed, self.split, index)
        longest = length - 1
        count = int(generator.integers(options.shortest or longest, longest + 1))
        word = generator.integers(FIRST, FIRST + options.symbols, count, np.int32)
        return pair(word, np.append(word[::-1], np.int32(END)), length, START)


def pair(source: np.ndarray, target: np.ndarray, length: int, start: int) -> Example:
    """One example of sequence_to_sequence from two rows of tokens, each padded to `length`.

    Raises ValueError where one is longer.
    """
    if max(len(source), len(target)) > length:
        raise ValueError(
            f"rows of {len(source)} and {len(target)} tokens do not fit into "
            f"data.sequence_length={length}; nearest: {max(len(source), len(target))}"
        )
    inputs, targets, decoder_inputs = np.zeros((3, length), np.int32)
    inputs[: len(source)], targets[: len(target)] = source, target
    decoder_inputs[0], decoder_inputs[1:] = start, targets[:-1]
    place = np.arange(length, dtype=np.int32)
    return {
        "inputs": inputs,
        "input_segments": (place < len(source)).astype(np.int32),
        "decoder_inputs": decoder_inputs,
        "targets": targets,
        "segments": np.ones(length, np.int32),
        "positions": place,
        "mask": (place < len(target)).astype(np.float32),
    }


def open_source(
    options: Config,
    *,
    split: str,
    sequence_length: int = 16,
    directory: str | os.PathLike[str] | None = None,
) -> Reversal:
    """One split; rows of `sequence_length` tokens, one more than the longest word."""
    del directory  # nothing is stored
    check_choice("split of data set reversal", split, SPLITS)
    least = max(options.shortest, 1) + 1
    check_range("sequence_length", sequence_length, least, unit="tokens for such words")
    size = FIRST + options.symbols
    spec = Spec("sequence_to_sequence", (sequence_length,), size, "reversal", VERSION)
    return Reversal(spec, split, options, sequence_length=sequence_length)
