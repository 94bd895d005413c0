"""Handwritten digits, each with the English word for it: images of 8 x 8 pixels, texts of letters.

Task: contrast. Size: 1,797 pairs of 10 words: train 1,297, validation 200, test 300; the split of
the data set digits.
Source: the data set digits (bundled with scikit-learn), and this file. Licence: CC-BY-4.0.
"""

from __future__ import annotations

import dataclasses
import os

import numpy as np

from launch.data import digits
from launch.data.source import ArraySource, Spec

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PAD, FIRST_LETTER, START, END = 0, 1, 27, 28
VOCABULARY, LENGTH = 29, 8  # tokens, and tokens of a text


@dataclasses.dataclass(frozen=True)
class Config:
    """The form of the images."""

    scaling: str = "unit"  # unit: 0..1; standard: each pixel mean 0, variance 1 on the train split


def spelled(word: str) -> list[int]:
    """Its letters between a start and an end, and padding: LENGTH tokens."""
    letters = [ord(letter) - ord("a") + FIRST_LETTER for letter in word]
    tokens = [START, *letters, END]
    return tokens + [PAD] * (LENGTH - len(tokens))


def open_source(
    options: Config,
    *,
    split: str,
    sequence_length: int = 0,
    directory: str | os.PathLike[str] | None = None,
) -> ArraySource:
    """One split: `inputs` (8, 8, 1), `tokens` (8,) of the word, `labels` 0 to 9, and `choices`
    (10, 8), the tokens of all words."""
    del sequence_length  # all texts have one length
    source = digits.open_source(
        digits.Config(scaling=options.scaling), split=split, directory=directory
    )
    words = np.asarray([spelled(word) for word in WORDS], np.int32)
    labels = source.arrays["labels"]
    arrays = {
        "inputs": source.arrays["inputs"],
        "tokens": words[labels],
        "labels": labels,
        "choices": np.broadcast_to(words, (len(labels), *words.shape)),
    }
    shape, version = source.spec.input_shape, source.spec.version
    spec = Spec("contrast", shape, VOCABULARY, "digit_words", version)
    return ArraySource(spec, split, options, arrays)
