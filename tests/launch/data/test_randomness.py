"""The order of the data: a permutation, another one each epoch, the same for ever."""

from __future__ import annotations

import numpy as np
import pytest

from launch.data import randomness


@pytest.mark.parametrize("length", [1, 2, 3, 5, 10, 97, 256, 1297, 30011])
def test_each_epoch_visits_every_record_once(length: int) -> None:
    order = randomness.shuffled(3, np.arange(3 * length), length).reshape(3, length)
    for epoch in order:
        assert sorted(epoch) == list(range(length))


def test_epochs_and_seeds_differ() -> None:
    first = randomness.shuffled(0, np.arange(2000), 1000).reshape(2, 1000)
    other = randomness.shuffled(1, np.arange(2000), 1000).reshape(2, 1000)
    rows = np.concatenate([first, other, np.arange(1000)[None]])
    for i in range(len(rows)):
        for j in range(i):
            assert (rows[i] == rows[j]).mean() < 0.01


def test_a_position_has_the_same_record_whatever_else_is_asked_for() -> None:
    all_at_once = randomness.shuffled(5, np.arange(500), 97)
    one_by_one = [randomness.shuffled(5, np.array([i]), 97)[0] for i in range(500)]
    assert all_at_once.tolist() == one_by_one


def test_every_record_is_as_likely_in_every_place() -> None:
    length, epochs = 12, 6000
    order = randomness.shuffled(0, np.arange(length * epochs), length).reshape(epochs, length)
    expected = epochs / length
    for pairs in (order, (np.roll(order, -1, axis=1) - order) % length):  # places; neighbours
        counts = np.stack([np.bincount(column, minlength=length) for column in pairs.T])
        possible = counts[:, counts.any(axis=0)]
        wanted = expected if possible.shape[1] == length else epochs / (length - 1)
        chi_square = ((possible - wanted) ** 2 / wanted).sum(axis=1)
        assert chi_square.max() < 40  # 11 degrees of freedom: exceeded with probability 4e-5


def test_a_length_beyond_memory() -> None:
    length = 10**13 + 7
    order = randomness.shuffled(0, np.arange(10000) + 3 * length, length)
    assert len(set(order.tolist())) == 10000
    assert order.min() >= 0
    assert order.max() < length
    assert abs(order.mean() / length - 0.5) < 0.02


def test_the_order_never_changes() -> None:
    """A resumed run relies on these numbers: they may not change from one version to the next."""
    assert randomness.shuffled(0, np.arange(12), 10).tolist() == GOLDEN_10
    assert randomness.shuffled(7, np.array([0, 1, 2**40]), 1281167).tolist() == GOLDEN_LARGE


def test_generators_belong_to_their_numbers() -> None:
    def draw(*key: object) -> float:
        return float(randomness.generator(*key).random())  # type: ignore[arg-type]

    keys = [(0, "augment", 0), (0, "augment", 1), (1, "augment", 0), (0, "mixup", 0)]
    assert len({draw(*key) for key in keys}) == len(keys)
    assert draw(*keys[0]) == draw(*keys[0])
    key = np.array([randomness.word(5, int.from_bytes(b"mixup", "little")), 9], np.uint64)
    assert draw(5, "mixup", 9) == np.random.Generator(np.random.Philox(key=key)).random()


GOLDEN_10 = [8, 2, 6, 9, 5, 4, 7, 1, 0, 3, 1, 8]
GOLDEN_LARGE = [339890, 71729, 874394]
