"""Batches: a pure function of (seed, step), sliced by host, resumable, and honest about errors."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest

from launch.data.loader import Loader, check_fingerprint
from launch.data.source import Example, RecordError


def same(left: Example, right: Example) -> None:
    assert left.keys() == right.keys()
    for key in left:
        np.testing.assert_array_equal(left[key], right[key])
        assert left[key].dtype == right[key].dtype


def joined(batches: list[Example]) -> Example:
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}


def jitter(example: Example, generator: np.random.Generator) -> Example:
    return {**example, "inputs": example["inputs"] + generator.standard_normal(2, np.float32)}


def visited(batch: Example) -> list[int]:
    return batch["inputs"][:, 0].astype(int).tolist()


def test_a_training_batch(numbers: Any) -> None:
    batch = Loader(numbers(10), 4, seed=0, train=True).batch(3)
    assert {key: (a.shape, a.dtype.name) for key, a in batch.items()} == {
        "inputs": ((4, 2), "float32"),
        "labels": ((4,), "int32"),
        "mask": ((4,), "float32"),
    }
    np.testing.assert_array_equal(batch["labels"], batch["inputs"][:, 0] % 7)
    assert batch["mask"].tolist() == [1, 1, 1, 1]


def test_every_epoch_visits_each_example_once_in_another_order(numbers: Any) -> None:
    loader = Loader(numbers(10), 4, seed=0, train=True)
    stream = np.array([visited(loader.batch(step)) for step in range(10)]).reshape(4, 10)
    for epoch in stream:
        assert sorted(epoch) == list(range(10))
    assert len({tuple(epoch) for epoch in stream}) == 4


def test_the_seed_changes_the_order(numbers: Any) -> None:
    orders = [visited(Loader(numbers(50), 50, seed, train=True).batch(0)) for seed in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]


@pytest.mark.parametrize("processes", [2, 3, 6])
@pytest.mark.parametrize("transform", [None, jitter])
@pytest.mark.parametrize("train", [True, False])
def test_hosts_share_out_the_same_global_batch(
    numbers: Any, processes: int, transform: Any, train: bool
) -> None:
    whole = Loader(numbers(31), 12, 5, train, transform)
    shares = [
        Loader(numbers(31), 12, 5, train, transform, (index,), processes)
        for index in range(processes)
    ]
    for step in range(3):
        same(joined([share.batch(step) for share in shares]), whole.batch(step))


@pytest.mark.parametrize("train", [True, False])
def test_a_host_may_hold_shares_that_are_apart(numbers: Any, train: bool) -> None:
    source = numbers(31)
    source.mixup = 0.4
    whole, some = (Loader(source, 12, 5, train, None, *held) for held in ((), ((0, 2), 3)))
    rows = [0, 1, 2, 3, 8, 9, 10, 11]
    for step in range(3):
        same(some.batch(step), {name: x[rows] for name, x in whole.batch(step).items()})


def test_mixup_does_not_depend_on_the_number_of_hosts(numbers: Any) -> None:
    source = numbers(40)
    source.mixup = 0.4
    whole = Loader(source, 12, 5, True)
    shares = [Loader(source, 12, 5, True, None, (index,), 3) for index in range(3)]
    for step in range(4):
        same(joined([share.batch(step) for share in shares]), whole.batch(step))
    assert "mix" in whole.batch(0)
    assert "mix" not in next(whole.epoch())
    with pytest.raises(ValueError, match=r"1 rows per share must be even; nearest: 2"):
        Loader(source, 3, 0, True, None, (0,), 3)
    assert len(list(Loader(source, 3, 0, False, None, (0,), 3).epoch())) == 14  # nothing is mixed


@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("transform", [None, jitter])
def test_starting_in_the_middle_gives_what_would_have_come(
    numbers: Any, prefetch: int, transform: Any
) -> None:
    source = numbers(23)
    expected = [Loader(source, 4, 1, True, transform).batch(step) for step in range(12)]
    for start in (0, 7):
        batches = Loader(source, 4, 1, True, transform, prefetch=prefetch).iterate(start)
        for step in range(start, 12):
            same(next(batches), expected[step])
        batches.close()


def test_augmentation_is_new_in_every_epoch(numbers: Any) -> None:
    loader = Loader(numbers(4), 4, 0, True, jitter)
    first, second = loader.batch(0), loader.batch(1)
    order = np.argsort(first["labels"]), np.argsort(second["labels"])
    assert (first["inputs"][order[0]] != second["inputs"][order[1]]).all()


@pytest.mark.parametrize(("length", "size", "processes"), [(10, 4, 1), (10, 4, 2), (5, 8, 4)])
def test_an_evaluation_epoch_sees_each_example_once(
    numbers: Any, length: int, size: int, processes: int
) -> None:
    source = numbers(length)
    hosts = [
        list(Loader(source, size, 0, True, jitter, (index,), processes).epoch())
        for index in range(processes)
    ]
    batches = [joined(list(rows)) for rows in zip(*hosts, strict=True)]
    assert len(batches) == -(-length // size)
    assert all(len(batch["mask"]) == size for batch in batches)
    whole = joined(batches)
    assert whole["mask"].tolist() == [1.0] * length + [0.0] * (len(whole["mask"]) - length)
    real = {key: array[:length] for key, array in whole.items() if key != "mask"}
    same(real, source.arrays)
    assert not whole["inputs"][length:].any()


def test_an_ordered_loader_ends(numbers: Any) -> None:
    loader = Loader(numbers(10), 4, 0, train=False)
    assert len(list(loader.iterate())) == loader.epoch_batches == 3
    with pytest.raises(IndexError, match="no batch 3"):
        loader.batch(3)


def test_a_bad_record_is_named(numbers: Any) -> None:
    def raises() -> Example:
        raise OSError("truncated")

    message = r"data set numbers, split train: record 6 cannot be read: OSError: truncated"
    loader = Loader(numbers(10, {6: raises}), 10, 0, True)
    with pytest.raises(RecordError, match=message):
        loader.batch(0)
    with pytest.raises(RecordError, match=message):
        next(loader.iterate())
    with pytest.raises(RecordError, match=message):
        list(Loader(numbers(10, {6: raises}), 4, 0, False).epoch())
    augmenting = Loader(numbers(10, {6: raises}), 10, 0, True, jitter)
    with pytest.raises(RecordError, match=message):
        augmenting.batch(0)


def test_a_record_of_another_shape_is_named(numbers: Any) -> None:
    def longer() -> Example:
        return {"inputs": np.zeros(3, np.float32), "labels": np.int32(0)}

    keep = Loader(numbers(10, {6: longer}), 10, 0, True, lambda example, generator: example)
    with pytest.raises(RecordError, match=r"record 6 has inputs \(3,\).*has inputs \(2,\)"):
        keep.batch(0)


def test_a_read_that_fails_once_is_tried_again(numbers: Any) -> None:
    failures = iter([OSError("busy")])
    source = numbers(10)
    good = source[6]

    def flaky() -> Example:
        for error in failures:
            raise error
        return good

    same(
        Loader(numbers(10, {6: flaky}), 10, 0, True).batch(0), Loader(source, 10, 0, True).batch(0)
    )


def test_a_read_that_hangs_times_out(numbers: Any) -> None:
    release = threading.Event()
    source = numbers(10, {6: lambda: {"inputs": release.wait(20)}})
    loader = Loader(source, 10, 0, True, timeout=0.2)
    with pytest.raises(TimeoutError, match="data set numbers, split train: the batch of step 0"):
        next(loader.iterate())
    release.set()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, r"data.batch_size is 0: .*nearest: 1"),
        ({"batch_size": 10, "share_count": 4}, r"batch_size is 10: .* 4 shares.*nearest: 8"),
        ({"shares": (2,), "share_count": 2}, r"shares \[2\] must be different ones of 0 to 1"),
        ({"shares": (1, 0), "share_count": 2}, r"shares \[1, 0\] .*ascending"),
        ({"shares": ()}, r"shares \[\]"),
        ({"prefetch": -1}, r"data.prefetch is -1: .*nearest: 0"),
    ],
)
def test_sizes_that_do_not_fit(numbers: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Loader(numbers(10), **{"batch_size": 4, "seed": 0, "train": True, **arguments})
    assert "\n" not in str(error.value)


def test_an_empty_source_is_refused(numbers: Any) -> None:
    with pytest.raises(ValueError, match="data set numbers, split train has no examples"):
        Loader(numbers(0), 4, 0, True)


def test_the_fingerprint_names_what_changed(numbers: Any) -> None:
    def fingerprint(length: int = 10, size: int = 4, seed: int = 0) -> dict[str, Any]:
        return Loader(numbers(length), size, seed, True).fingerprint()

    stored = json.loads(json.dumps(fingerprint()))
    check_fingerprint(stored, fingerprint())
    for changed, name in (
        (fingerprint(length=11), r"length was 10, is 11"),
        (fingerprint(size=8), r"batch_size was 4, is 8"),
        (fingerprint(seed=3), r"seed was 0, is 3"),
        ({**fingerprint(), "version": "2"}, r'version was "1", is "2"'),
        ({**fingerprint(), "packing": {"sequence_length": 8}}, r"packing.sequence_length was abs"),
        ({**fingerprint(), "options": {"shape": (1, 2)}}, r"options.shape was absent, is \[1, 2\]"),
    ):
        with pytest.raises(ValueError, match=name) as error:
            check_fingerprint(stored, changed)
        assert "\n" not in str(error.value)
    both = {**fingerprint(seed=3, size=8)}
    with pytest.raises(ValueError, match=r"batch_size was 4, is 8; seed was 0, is 3"):
        check_fingerprint(stored, both)


def test_a_fingerprint_equals_itself_after_json() -> None:
    options = {"options": {"sizes": (1, 2), "name": None, "rate": 0.5}}
    check_fingerprint(json.loads(json.dumps(options)), options)


def test_grain_sees_the_same_batches(numbers: Any) -> None:
    loader = Loader(numbers(23), 4, 1, True, jitter)
    dataset = loader.dataset()
    for step in (0, 9):
        same(dataset[step], loader.batch(step))
    batches = iter(dataset.to_iter_dataset())
    same(next(batches), loader.batch(0))
    assert len(Loader(numbers(23), 4, 1, False).dataset()) == 6


def test_reading_data_does_not_import_jax() -> None:
    program = (
        "import importlib, sys\n"
        "from launch.data.source import available, open_split\n"
        "from launch.data.loader import Loader\n"
        "for name in available(): importlib.import_module(f'launch.data.{name}')\n"
        "next(Loader(open_split('synthetic'), 4, 0, True).iterate())\n"
        "print([m for m in ('jax', 'grain', 'tensorflow', 'tensorflow_datasets', 'sklearn')\n"
        "       if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]", done.stderr
