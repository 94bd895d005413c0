"""The devices of each slot."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.sweeping import slots


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with twelve GPUs."""
    monkeypatch.delenv("JAX_PLATFORMS")
    for variable in slots.VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)
    for name in ("nvidiactl", "null", *(f"nvidia{i}" for i in range(12))):
        (tmp_path / name).touch()
    return tmp_path


def visible(gpus: Path, *args: int) -> list[str]:
    return [env["CUDA_VISIBLE_DEVICES"] for env in slots.environments(*args, dev=gpus)]


def test_slots_share_the_accelerators_out(gpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert visible(gpus, 0, 0, 0) == [str(i) for i in range(12)]
    assert visible(gpus, 2, 0, 0) == ["0", "1"]
    assert visible(gpus, 0, 5, 0) == ["0,1,2,3,4", "5,6,7,8,9"]
    with pytest.raises(ValueError, match=r"need 15 accelerators; 12 are here; nearest: --slots=2"):
        visible(gpus, 3, 5, 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,GPU-3,9")  # what a scheduler gave
    assert visible(gpus, 0, 0, 0) == ["7", "GPU-3", "9"]
    with pytest.raises(ValueError, match="need 4 accelerators; 3 are here"):
        visible(gpus, 4, 1, 0)


def test_chips_of_a_tpu_are_told_that_they_are_alone(gpus: Path) -> None:
    for path in gpus.glob("nvidia*"):
        path.unlink()
    for i in range(4):
        (gpus / f"accel{i}").touch()
    first, second = slots.environments(0, 2, 0, dev=gpus)
    assert (first["TPU_VISIBLE_CHIPS"], second["TPU_VISIBLE_CHIPS"]) == ("0,1", "2,3")
    assert first["TPU_CHIPS_PER_PROCESS_BOUNDS"] == "1,2,1"
    assert first["TPU_PROCESS_BOUNDS"] == "1,1,1"


def test_runs_on_the_cpu_share_it(gpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(slots.environments(3, 0, simulate=2, dev=gpus)) == 3
    assert "CUDA_VISIBLE_DEVICES" not in slots.environments(1, 0, simulate=2, dev=gpus)[0]
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert len(slots.environments(0, 0, 0, dev=gpus)) == 1
    with pytest.raises(ValueError, match="there are no accelerators here"):
        slots.environments(1, 1, 0, dev=gpus)


def test_programs_are_shared_unless_the_user_has_a_place_for_them(tmp_path: Path) -> None:
    shared = slots.sharing({"A": "1"}, tmp_path)
    assert shared["A"] == "1" and shared["JAX_COMPILATION_CACHE_DIR"].startswith(str(tmp_path))
    own = {"JAX_COMPILATION_CACHE_DIR": "/mine"}
    assert slots.sharing(own, tmp_path) == own
