"""Augmentation: each change is what it says, and mixup mixes neighbours."""

from __future__ import annotations

import numpy as np
import pytest

from launch.data import augment
from launch.data.augment import Augment
from launch.data.source import Spec

IMAGE = np.arange(1, 6 * 5 * 2 + 1, dtype=np.float32).reshape(6, 5, 2)


def generators(count: int = 200) -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for seed in range(count)]


def test_flip_mirrors_half_of_the_images() -> None:
    results = [augment.random_flip(IMAGE, generator) for generator in generators()]
    mirrored = [np.array_equal(result, IMAGE[:, ::-1]) for result in results]
    assert all(m or np.array_equal(r, IMAGE) for m, r in zip(mirrored, results, strict=True))
    assert 70 < sum(mirrored) < 130


def test_padded_crop_shifts_by_up_to_the_padding() -> None:
    seen = set()
    for generator in generators():
        result = augment.padded_crop(IMAGE, 1, generator)
        assert result.shape == IMAGE.shape
        framed = np.pad(IMAGE, ((1, 1), (1, 1), (0, 0)))
        places = [
            (top, left)
            for top in range(3)
            for left in range(3)
            if np.array_equal(result, framed[top : top + 6, left : left + 5])
        ]
        assert len(places) == 1
        seen.update(places)
    assert len(seen) == 9


def test_cutout_sets_one_square_to_zero() -> None:
    areas = []
    for generator in generators():
        result = augment.cutout(IMAGE, 3, generator)
        zero = (result == 0).all(axis=-1)
        np.testing.assert_array_equal(result[~zero], IMAGE[~zero])
        rows, columns = np.flatnonzero(zero.any(1)), np.flatnonzero(zero.any(0))
        assert zero[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        areas.append(int(zero.sum()))
    assert max(areas) == 9
    assert min(areas) >= 4
    assert IMAGE.min() == 1  # the example itself is left as it was


def test_augment_composes_and_keeps_the_rest() -> None:
    change = Augment(pad=2, flip=True, cutout=2)
    example = {"inputs": IMAGE, "labels": np.int32(3)}
    results = [change(example, generator) for generator in generators(20)]
    assert all(result["labels"] == 3 and result["inputs"].shape == (6, 5, 2) for result in results)
    assert len({result["inputs"].tobytes() for result in results}) > 15
    again = change(example, generators(1)[0])
    np.testing.assert_array_equal(again["inputs"], results[0]["inputs"])
    assert change
    assert not Augment()
    with pytest.raises(ValueError, match="data.pad is -1: it must be at least 0 pixels"):
        Augment(pad=-1)


def test_mixup_mixes_neighbours() -> None:
    rows = 8
    batch = {
        "inputs": np.random.default_rng(0).standard_normal((rows, 4, 4, 1), np.float32),
        "labels": np.arange(rows, dtype=np.int32),
        "mask": np.ones(rows, np.float32),
    }
    mixed = augment.mixup(batch, 0.3, seed=0, step=5, rows=np.arange(rows), batch_size=rows)
    assert mixed["labels"].tolist() == list(range(8))
    assert mixed["labels_mixed"].tolist() == [1, 0, 3, 2, 5, 4, 7, 6]
    assert mixed["mix"].dtype == mixed["inputs"].dtype == np.float32
    assert ((mixed["mix"] >= 0) & (mixed["mix"] <= 1)).all()
    for row in range(rows):
        weight = mixed["mix"][row]
        expected = weight * batch["inputs"][row] + (1 - weight) * batch["inputs"][row ^ 1]
        np.testing.assert_allclose(mixed["inputs"][row], expected, rtol=1e-6)
    other = augment.mixup(batch, 0.3, seed=0, step=6, rows=np.arange(rows), batch_size=rows)
    assert (other["mix"] != mixed["mix"]).all()


def test_mixup_weights_follow_the_beta_distribution() -> None:
    batch = {"inputs": np.zeros((2000, 1), np.float32), "labels": np.zeros(2000, np.int32)}
    mix = augment.mixup(batch, 0.5, 0, 0, np.arange(2000), 2000)["mix"]
    assert abs(mix.mean() - 0.5) < 0.03
    assert abs(mix.var() - 0.125) < 0.01  # of Beta(1/2, 1/2)


def test_mixup_needs_classes() -> None:
    with pytest.raises(ValueError, match="mixes classes: data set d is for regress"):
        augment.check_mixup(0.2, Spec("regress", (2,), 1, "d", "1"), 4)
