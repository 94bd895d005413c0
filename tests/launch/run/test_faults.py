"""Faults happen where they are asked for, and nowhere by default."""

from __future__ import annotations

import signal

import numpy as np
import pytest

from launch.run import faults
from launch.run.faults import Faults


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[signal.Signals]:
    found: list[signal.Signals] = []
    monkeypatch.setattr(faults.os, "kill", lambda pid, number: found.append(number))
    return found


def test_off_by_default(sent: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAULT", raising=False)
    none = Faults.from_environment()
    batch = {"inputs": np.ones(3, np.float32)}
    for step in range(20):
        none.at(step)
        assert none.poison(step, batch) is batch
    assert sent == []


def test_signals_at_their_steps(sent: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAULT", "kill@17, sigterm@3-4")
    some = Faults.from_environment()
    for step in range(20):
        some.at(step)
    assert sent == [signal.SIGTERM, signal.SIGTERM, signal.SIGKILL]


def test_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    class Woken(Exception):
        pass

    def sleep(seconds: float) -> None:
        raise Woken

    monkeypatch.setattr(faults.time, "sleep", sleep)
    Faults("hang@3").at(2)
    with pytest.raises(Woken):
        Faults("hang@3").at(3)


def test_nan_goes_into_every_float_array() -> None:
    batch = {"inputs": np.ones((2, 3), np.int32), "mask": np.ones((2, 3), np.float32)}
    some = Faults("nan@5-6")
    assert some.poison(4, batch) is batch
    poisoned = some.poison(6, batch)
    assert np.isnan(poisoned["mask"]).all() and poisoned["mask"].dtype == np.float32
    assert poisoned["inputs"] is batch["inputs"]
    assert (batch["mask"] == 1).all()


@pytest.mark.parametrize("spec", ["kill", "kill@x", "explode@3", "nan@3+4"])
def test_unknown_faults(spec: str) -> None:
    with pytest.raises(ValueError, match="must be KIND@STEP or KIND@FIRST-LAST .* kill, sigterm"):
        Faults(spec)
