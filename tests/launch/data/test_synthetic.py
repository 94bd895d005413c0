"""Made-up tasks: they pose the problem they say, and can be solved."""

from __future__ import annotations

import numpy as np
import pytest

from launch.data.source import open_split


@pytest.mark.parametrize("length", [2, 9, 16])
@pytest.mark.parametrize("task", ["copy", "reverse"])
def test_the_masked_targets_repeat_the_word(task: str, length: int) -> None:
    source = open_split("synthetic", {"task": task, "vocabulary": 20}, "train", length)
    for index in range(20):
        row = source[index]
        word = row["inputs"][: length // 2]
        asked = row["targets"][row["mask"] == 1]
        assert asked.tolist() == (word if task == "copy" else word[::-1]).tolist()
        assert (word > 0).all()
        assert row["inputs"][length // 2] == 0
        np.testing.assert_array_equal(row["inputs"][1:], row["targets"][:-1])
        np.testing.assert_array_equal(row["positions"], np.arange(length))
        assert (row["segments"] == 1).all()


def test_random_tokens_fill_the_vocabulary() -> None:
    source = open_split("synthetic", {"vocabulary": 11}, "train", 64)
    tokens = source.read(range(100))["inputs"]
    assert (np.bincount(tokens.ravel(), minlength=11) > 400).all()


def test_the_teacher_is_the_same_for_every_split() -> None:
    options = {"task": "teacher", "noise": 0.0, "inputs": 2, "hidden": 4, "outputs": 1}
    train, test = (open_split("synthetic", options, split) for split in ("train", "test"))
    x, y = (train.read(range(4096))[key] for key in ("inputs", "targets"))
    queries = test.read(range(200))
    nearest = np.argmin(((queries["inputs"][:, None] - x[None]) ** 2).sum(-1), axis=1)
    error = ((y[nearest] - queries["targets"]) ** 2).mean()
    assert error < 0.05 * queries["targets"].var()


def test_images_can_be_told_apart() -> None:
    options = {"task": "random_images", "image_size": 8, "noise": 0.5, "classes": 4}
    train, test = (open_split("synthetic", options, split) for split in ("train", "test"))
    seen, asked = train.read(range(200)), test.read(range(50))
    means = np.stack([seen["inputs"][seen["labels"] == c].mean(0) for c in range(4)])
    distance = ((asked["inputs"][:, None] - means[None]) ** 2).sum((-1, -2, -3))
    assert (distance.argmin(1) == asked["labels"]).all()


def test_the_seed_makes_other_data() -> None:
    first, other = (open_split("synthetic", {"content_seed": s}, "train", 16) for s in (0, 1))
    assert (first[0]["inputs"] != other[0]["inputs"]).any()
