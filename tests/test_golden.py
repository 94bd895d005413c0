"""Our code against what PyTorch and others computed, as recorded in tests/golden/peers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests import golden_store
from tests.golden_store import Record

TESTS = Path(__file__).parent


@pytest.mark.parametrize("name", golden_store.names())
def test_recorded(name: str) -> None:
    golden_store.check(name, golden_store.load(name))


def test_records_are_small_and_complete() -> None:
    files = [path for path in golden_store.GOLDEN.rglob("*") if path.is_file()]
    assert files
    assert [path.name for path in files if path.stat().st_size > 1.05 * golden_store.LIMIT] == []
    topics = {name.partition(".")[0] for name in golden_store.names()}
    assert topics == {path.stem for path in (TESTS / "parity").glob("*.py")}


def test_every_record_says_where_it_comes_from() -> None:
    for name in golden_store.names():
        about = golden_store.load(name).about
        assert {"reference", "versions", "seed"} <= about.keys(), name


EXPECTED = {"a": np.asarray([100.0, 1e-3, np.inf]), "b/c": np.asarray(0.0)}


def test_compare_passes_what_is_near() -> None:
    near = {"a": np.asarray([100.0 + 5e-5, 1e-3, np.inf]), "b/c": np.asarray(1e-7)}
    golden_store.compare(near, EXPECTED, 1e-6)
    golden_store.compare(near, EXPECTED, {"": 0.0, "a": 1e-6, "b/": 1e-6})


def test_a_gradient_that_is_rounding_is_compared_on_the_scale_of_the_others() -> None:
    expected = {"grad/big": np.asarray([2.0]), "grad/none": np.asarray([1e-9])}
    golden_store.compare({**expected, "grad/none": np.asarray([-2e-10])}, expected, 1e-5)
    with pytest.raises(AssertionError, match="grad/none: error 1.00e-04"):
        golden_store.compare({**expected, "grad/none": np.asarray([2.0001e-6])}, expected, 1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": np.asarray([100.1, 1e-3, np.inf])}, "a: error 1.00e-03 of its scale, allowed 1e-06"),
        ({"a": np.asarray([100.0, 1e-3, 1.0])}, "a: error inf"),
        ({"a": np.asarray([100.0, 1e-3, -np.inf])}, "a: error inf"),
        ({"a": np.asarray([100.0, np.nan, np.inf])}, "a: error inf"),
        ({"a": np.asarray([100.0, 1e-3])}, "a: error inf"),
        ({"b/c": np.asarray(1e-3)}, "b/c: error 1.00e-03"),
        ({"d": np.asarray(0.0)}, r"too many \['d'\]"),
    ],
)
def test_compare_fails_on_what_is_not(change: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        golden_store.compare({**EXPECTED, **change}, EXPECTED, 1e-6)


def test_compare_misses_nothing() -> None:
    with pytest.raises(AssertionError, match=r"missing \['b/c'\]"):
        golden_store.compare({"a": EXPECTED["a"]}, EXPECTED, 1e-6)


def test_store_gives_back_what_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden_store, "GOLDEN", tmp_path)
    record = Record({"x": np.eye(3)[:, ::2]}, {"y/dx": np.asarray(2.0, np.float32)}, {"seed": 1})
    golden_store.save("topic.one", record)
    back = golden_store.load("topic.one")
    assert golden_store.names() == ["topic.one"]
    assert back.about == record.about
    np.testing.assert_array_equal(back.inputs["x"], record.inputs["x"])
    assert (back.outputs["y/dx"].dtype, back.outputs["y/dx"].shape) == (np.float32, ())
    with pytest.raises(ValueError, match="at most 200000: make it smaller"):
        golden_store.save("big", Record({"x": np.zeros(30_000)}, {}, {}))
    with pytest.raises(FileNotFoundError, match="python -m tests.peers.record missing.one"):
        golden_store.load("missing.one")
