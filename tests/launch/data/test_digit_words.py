"""Digits with words: every image has the word of its label."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from launch.data import digit_words
from launch.data.source import open_split


def test_words_are_those_of_the_labels(directory: Path) -> None:
    words = open_split("digit_words", split="test", directory=directory)
    digits = open_split("digits", split="test", directory=directory)
    assert len(words) == len(digits) == 300
    for index in (0, 7, 299):
        example, plain = words[index], digits[index]
        np.testing.assert_array_equal(example["inputs"], plain["inputs"])
        assert example["labels"] == plain["labels"]
        text = digit_words.WORDS[int(plain["labels"])]
        letters = [token for token in example["tokens"] if 1 <= token <= 26]
        assert "".join(chr(ord("a") + token - 1) for token in letters) == text
        assert list(example["tokens"][: len(text) + 2][[0, -1]]) == [27, 28]
        np.testing.assert_array_equal(example["choices"][plain["labels"]], example["tokens"])
        assert len({row.tobytes() for row in example["choices"]}) == 10
