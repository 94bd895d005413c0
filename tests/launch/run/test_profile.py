"""A trace of the steps that were asked for, and of no others."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from launch.run.profile import Profiler, parse


@pytest.mark.parametrize(
    "spec, steps",
    [("steps 10-15", (10, 15)), ("10-15", (10, 15)), ("step 7", (7, 7)), (" 3 - 4 ", (3, 4))],
)
def test_specs(spec: str, steps: tuple[int, int]) -> None:
    assert parse(spec) == steps


@pytest.mark.parametrize(
    "spec, near", [("ten", "steps 10-15"), ("15-10", "steps 10-15"), ("0-2", "steps 1-2"), ("", "")]
)
def test_bad_specs(spec: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"must name steps from 1 on, in order; nearest: '{near}"):
        parse(spec)


def test_steps_that_the_run_does_not_take(tmp_path: Path) -> None:
    for start, total in ((0, 12), (10, 30)):
        with pytest.raises(ValueError, match=f"takes the steps {start + 1} to {total}"):
            Profiler("steps 10-15", tmp_path, start, total)
    Profiler("steps 10-15", tmp_path, 9, 15)


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.rglob("*") if path.is_file())


def test_traces_only_the_steps_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    start, stop = jax.profiler.start_trace, jax.profiler.stop_trace
    monkeypatch.setattr(jax.profiler, "start_trace", lambda d: (calls.append("start"), start(d)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: (calls.append("stop"), stop()))
    profiler = Profiler("steps 2-3", tmp_path / "profile", total=4)
    double = jax.jit(lambda x: x + x)
    x = jnp.ones(8)
    for step in range(1, 5):
        with profiler.step(step):
            calls.append(str(step))
            x = double(x)
    profiler.close()
    assert calls == ["1", "start", "2", "3", "stop", "4"]
    found = files(tmp_path / "profile")
    assert any(name.endswith(".xplane.pb") for name in found)
    assert "memory.0.prof" in found
    trace = next((tmp_path / "profile").rglob("*.xplane.pb")).read_bytes()
    assert b"step_num" in trace


def test_a_run_that_ends_early_keeps_its_trace(tmp_path: Path) -> None:
    profiler = Profiler("steps 1-100", tmp_path)
    with profiler.step(1):
        pass
    profiler.close()
    profiler.close()
    assert any(name.endswith(".xplane.pb") for name in files(tmp_path))


def test_off(tmp_path: Path) -> None:
    profiler = Profiler(None, tmp_path / "profile", start=5, total=9)
    for step in range(-2, 3):
        with profiler.step(step):
            pass
    profiler.close()
    assert not (tmp_path / "profile").exists()
