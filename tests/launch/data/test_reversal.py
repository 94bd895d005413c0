"""Words and the same words backwards."""

from __future__ import annotations

import numpy as np
import pytest

from launch.data import reversal
from launch.data.source import open_split


def test_targets_are_the_inputs_backwards_and_an_end() -> None:
    options = {"symbols": 5, "shortest": 2, "examples": 64}
    source = open_split("reversal", options, sequence_length=7)
    assert len(source) == 64
    lengths = set()
    for index in range(len(source)):
        row = source[index]
        count = int(row["input_segments"].sum())
        lengths.add(count)
        word = row["inputs"][:count]
        assert word.min() >= reversal.FIRST
        assert word.max() < source.spec.num_outputs == 7
        assert row["targets"][: count + 1].tolist() == [*word[::-1], reversal.END]
        assert row["decoder_inputs"].tolist() == [reversal.START, *row["targets"][:-1]]
        assert row["mask"].tolist() == [1.0] * (count + 1) + [0.0] * (6 - count)
        assert not row["inputs"][count:].any()
    assert lengths == {2, 3, 4, 5, 6}


def test_splits_and_seeds_differ_and_indices_are_checked() -> None:
    train, test = (open_split("reversal", split=s, sequence_length=11) for s in ("train", "test"))
    other = open_split("reversal", {"content_seed": 1}, sequence_length=11)
    assert (train[0]["inputs"] != test[0]["inputs"]).any()
    assert (train[0]["inputs"] != other[0]["inputs"]).any()
    np.testing.assert_array_equal(train[3]["inputs"], train.read([3])["inputs"][0])
    assert len(test) == len(train) // 16
    with pytest.raises(IndexError, match="example 4096 of 4096"):
        test[4096]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sequence_length is 5: it must be at least 6 tokens"):
        open_split("reversal", {"shortest": 5}, sequence_length=5)
    with pytest.raises(ValueError, match="data.symbols is 1: it must be at least 2"):
        reversal.Config(symbols=1)
    row = np.zeros(4, np.int32)
    with pytest.raises(ValueError, match=r"rows of 4 and 3 tokens do not fit .* nearest: 4"):
        reversal.pair(row, row[:3], 3, 0)
