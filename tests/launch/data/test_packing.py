"""Packing: every token but the first of each document is a target once, and rows know their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from launch.data import packing
from launch.data.baseline import bigram_bits
from launch.data.loader import Loader
from launch.data.packing import PackedSource, Stream


def documents(seed: int, count: int = 30) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(0, 12, count)
    return [generator.integers(0, 50, length).astype(np.uint8) for length in lengths]


def source(stream: Stream, length: int) -> PackedSource:
    return PackedSource(
        stream, length, name="d", version="1", vocabulary=50, split="train", options=None
    )


def written_out(texts: list[np.ndarray], length: int) -> list[dict[str, list[int]]]:
    """The definition, token by token."""
    stream = [(token, number) for number, text in enumerate(texts) for token in text]
    rows = []
    for begin in range(0, len(stream) - 1, length):
        keys = ("inputs", "targets", "segments", "positions", "mask")
        row: dict[str, list[int]] = {key: [0] * length for key in keys}
        segment, position, previous = 0, 0, None
        for j in range(length):
            if begin + j + 1 >= len(stream):
                break
            (token, number), (following, its_number) = stream[begin + j : begin + j + 2]
            segment, position = (segment, position + 1) if number == previous else (segment + 1, 0)
            previous = number
            for key, value in zip(
                keys, (token, following, segment, position, number == its_number), strict=True
            ):
                row[key][j] = int(value)
        rows.append(row)
    return rows


@pytest.mark.parametrize("length", [1, 2, 3, 8, 50, 1000])
@pytest.mark.parametrize("seed", [0, 1])
def test_rows_are_as_defined(length: int, seed: int) -> None:
    texts = documents(seed)
    packed = source(packing.join(texts, 50), length)
    expected = written_out(texts, length)
    assert len(packed) == len(expected)
    for index, row in enumerate(expected):
        for key, values in row.items():
            assert packed[index][key].tolist() == values, (index, key)
    example = packed[0]
    assert {key: array.dtype.name for key, array in example.items()} == {
        "inputs": "int32",
        "targets": "int32",
        "segments": "int32",
        "positions": "int32",
        "mask": "float32",
    }
    assert all(array.shape == (length,) for array in example.values())


@pytest.mark.parametrize("length", [1, 7, 64])
def test_an_epoch_has_every_target_once(length: int) -> None:
    texts = documents(3)
    batches = list(Loader(source(packing.join(texts, 50), length), 4, 0, True).epoch())
    targets = np.concatenate([b["targets"][b["mask"] == 1] for b in batches])
    np.testing.assert_array_equal(targets, np.concatenate([text[1:] for text in texts]))


def test_reading_many_rows_equals_reading_each() -> None:
    packed = source(packing.join(documents(4), 50), 9)
    order = [3, 0, len(packed) - 1, 3]
    together = packed.read(order)
    for row, index in enumerate(order):
        for key, array in packed[index].items():
            np.testing.assert_array_equal(together[key][row], array)


def test_a_stream_on_disk_equals_one_in_memory(tmp_path: Path) -> None:
    texts = documents(5)
    packing.write(texts, 50, tmp_path)
    stored, made = packing.read(tmp_path), packing.join(texts, 50)
    assert isinstance(stored.tokens, np.memmap)
    assert stored.digest == made.digest
    np.testing.assert_array_equal(stored.tokens, made.tokens)
    np.testing.assert_array_equal(stored.starts, made.starts)
    left, right = source(stored, 7), source(made, 7)
    for index in range(len(left)):
        for key in left[index]:
            np.testing.assert_array_equal(left[index][key], right[index][key])


def test_an_empty_stream_on_disk(tmp_path: Path) -> None:
    packing.write([], 50, tmp_path)
    assert len(packing.read(tmp_path).tokens) == 0


def test_the_digest_sees_a_moved_boundary() -> None:
    text = np.arange(10, dtype=np.uint8)
    assert packing.join([text[:4], text[4:]], 50).digest != (
        packing.join([text[:5], text[5:]], 50).digest
    )


@pytest.mark.parametrize(
    ("vocabulary", "name"), [(256, "uint8"), (257, "uint16"), (70000, "uint32")]
)
def test_tokens_take_no_more_room_than_they_need(vocabulary: int, name: str) -> None:
    stream = packing.join([np.array([0, vocabulary - 1])], vocabulary)
    assert stream.tokens.dtype.name == name
    assert stream.tokens.tolist() == [0, vocabulary - 1]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (np.array([1, 50]), "document 1 has token 50: tokens must be between 0 .*= 49"),
        (np.array([1, -2]), "document 1 has token -2"),
        (np.array([1.0, 2.0]), "document 1 has shape .* float64: it must be a list of integers"),
        (np.zeros((2, 2), int), r"document 1 has shape \(2, 2\)"),
    ],
)
@pytest.mark.parametrize("how", [packing.join, packing.write])
def test_documents_that_are_no_tokens(
    document: np.ndarray, message: str, how: Callable[..., object], tmp_path: Path
) -> None:
    further = [tmp_path] if how is packing.write else []
    with pytest.raises(ValueError, match=message):
        how([np.array([1, 2]), document], 50, *further)


def test_rows_need_tokens() -> None:
    one = packing.join([np.array([1])], 50)
    with pytest.raises(ValueError, match="data set d, split train has 1 tokens"):
        source(one, 8)
    with pytest.raises(ValueError, match="data.sequence_length is 0: it must be at least 1 tokens"):
        source(packing.join(documents(0), 50), 0)


def test_the_bigram_model_is_as_defined() -> None:
    train, other = documents(6), documents(7)
    counts = np.ones((50, 50))
    for text in train:
        for a, b in zip(text[:-1], text[1:], strict=True):
            counts[a, b] += 1
    bits = [
        -np.log2(counts[a, b] / counts[a].sum())
        for text in other
        for a, b in zip(text[:-1], text[1:], strict=True)
    ]
    measured = bigram_bits(packing.join(train, 50), packing.join(other, 50), 50)
    assert measured == pytest.approx(np.mean(bits), rel=1e-12)
