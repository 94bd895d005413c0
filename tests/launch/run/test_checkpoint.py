"""Checkpoints: what is restored is what was saved, or the damage is named."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from launch.run.checkpoint import Checkpoints, read_metadata

ROOT = Path(__file__).resolve().parents[3]


class Moments(NamedTuple):
    count: Any
    mean: Any


def on(mesh_shape: tuple[int, int], *spec: str | None) -> NamedSharding:
    devices = jax.devices()[: mesh_shape[0] * mesh_shape[1]]
    mesh = jax.make_mesh(mesh_shape, ("a", "b"), (AxisType.Auto,) * 2, devices=devices)
    return NamedSharding(mesh, PartitionSpec(*spec))


def make_state(seed: int = 0, mesh: tuple[int, int] = (4, 2)) -> dict[str, Any]:
    """A state with a sharded kernel, odd dtypes, an empty leaf and a NamedTuple."""
    draw = np.random.default_rng(seed).standard_normal
    kernel = jax.device_put(draw((64, 96)).astype(np.float32), on(mesh, "a", "b"))
    return {
        "step": jnp.int32(seed),
        "params": {"block": {"kernel": kernel, "half": jnp.asarray(draw(7), jnp.bfloat16)}},
        "optimizer": (Moments(jnp.uint8(3), draw((5, 3)).astype(np.float32)), {}),
        "flags": jnp.array([True, False, True]),
        "wave": jnp.asarray(draw(4) + 1j * draw(4), jnp.complex64),
        "none": jnp.zeros((0, 3)),
    }


def abstract(state: Any, sharding: NamedSharding | None = None) -> Any:
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=sharding if sharding and x.shape == (64, 96) else one
        ),
        state,
    )


def assert_equal(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def saved(directory: Path, *steps: int, keep: int = 3) -> None:
    with Checkpoints(directory, keep) as checkpoints:
        for step in steps:
            assert checkpoints.save(step, make_state(step), {"data": {"rows": step}})


def largest(directory: Path) -> Path:
    files = (path for path in directory.rglob("*") if path.is_file())
    return max(files, key=lambda path: path.stat().st_size)


def flip(path: Path, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1 << bit
    path.write_bytes(data)


@pytest.mark.parametrize("mesh, spec", [((4, 2), ("b", "a")), ((1, 8), (None, "b")), (None, ())])
def test_restores_onto_any_mesh(tmp_path: Path, mesh: Any, spec: Any) -> None:
    saved(tmp_path, 1)
    target = abstract(make_state(), on(mesh, *spec) if mesh else None)
    with Checkpoints(tmp_path) as checkpoints:
        state, metadata = checkpoints.restore(target)
    assert_equal(state, make_state(1))
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, target)
    assert metadata == {"data": {"rows": 1}}


def test_keeps_the_newest_and_returns_the_one_asked_for(tmp_path: Path) -> None:
    saved(tmp_path, 1, 5, 9, 13)
    with Checkpoints(tmp_path, keep=None) as checkpoints:
        assert checkpoints.steps() == [5, 9, 13]
        assert checkpoints.restore(make_state(), step=9)[0]["step"] == 9
        with pytest.raises(FileNotFoundError, match=r"step 1 in .* \(there: 5, 9, 13\)"):
            checkpoints.restore(make_state(), step=1)


def test_partial_restore_leaves_the_rest_on_disk(tmp_path: Path) -> None:
    saved(tmp_path, 2)
    wanted = {"params": make_state()["params"]}
    with Checkpoints(tmp_path, keep=None) as checkpoints:
        assert_equal(
            checkpoints.restore(wanted, partial=True)[0]["params"], make_state(2)["params"]
        )
        with pytest.raises(ValueError, match="it holds flags and 5 more, which the model has not"):
            checkpoints.restore(wanted)


def test_metadata_is_read_without_arrays(tmp_path: Path) -> None:
    saved(tmp_path, 3, 4)
    shutil.rmtree(tmp_path / "4" / "state")
    assert read_metadata(tmp_path) == {"data": {"rows": 4}}
    assert read_metadata(str(tmp_path), step=3) == {"data": {"rows": 3}}
    with pytest.raises(FileNotFoundError):
        read_metadata(tmp_path, step=7)
    (tmp_path / "4" / "manifest" / "metadata").write_text("{}")
    assert read_metadata(tmp_path) == {"data": {"rows": 3}}


def test_nothing_there(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "none", keep=None) as checkpoints:
        assert checkpoints.latest_step() is None
        with pytest.raises(FileNotFoundError, match=r"no checkpoint in .* \(there: none\)"):
            checkpoints.restore(make_state())
    assert not (tmp_path / "none").exists()


DAMAGE = {
    "flipped bit": lambda step: flip(largest(step / "state")),
    "highest bit": lambda step: flip(largest(step / "state"), 7),
    "truncated": lambda step: os.truncate(largest(step / "state"), 1000),
    "deleted": lambda step: largest(step / "state").unlink(),
    "no arrays": lambda step: shutil.rmtree(step / "state"),
    "changed manifest": lambda step: flip(step / "manifest" / "metadata"),
    "no manifest": lambda step: (step / "manifest" / "metadata").unlink(),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_and_the_step_before_used(tmp_path: Path, kind: str) -> None:
    saved(tmp_path, 1, 2)
    DAMAGE[kind](tmp_path / "2")
    lines: list[str] = []
    with Checkpoints(tmp_path, report=lines.append) as checkpoints:
        state, _ = checkpoints.restore(make_state())
        assert_equal(state, make_state(1))
        assert checkpoints.steps() == [1]
        assert checkpoints.save(2, make_state(20), {})  # training passes the damaged step again
        assert_equal(checkpoints.restore(make_state())[0], make_state(20))
    assert lines[0].startswith(f"checkpoint 2 in {tmp_path} is damaged: ")
    assert lines[1] == "going back to checkpoint 1"
    if "bit" in kind:
        assert "params/block/kernel is not what was saved" in lines[0]
    assert (tmp_path / "2.damaged").is_dir()


def test_all_damaged_is_an_error_and_touches_nothing(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    for step in ("1", "2"):
        flip(largest(tmp_path / step / "state"))
    with Checkpoints(tmp_path, report=lambda line: None) as checkpoints:
        with pytest.raises(
            ValueError, match=r"no checkpoint in .* can be used \(step 2: .*step 1:"
        ):
            checkpoints.restore(make_state())
        assert checkpoints.steps() == [1, 2]


def test_a_reader_renames_nothing(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    flip(largest(tmp_path / "2" / "state"))
    with Checkpoints(tmp_path, keep=None, report=lambda line: None) as checkpoints:
        assert checkpoints.restore(make_state())[0]["step"] == 1
    assert (tmp_path / "2").is_dir()


def test_unfinished_directories_are_ignored_and_replaced(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    (tmp_path / "7").mkdir()
    shutil.copytree(tmp_path / "2", tmp_path / "9")
    (tmp_path / "9" / "commit_success.txt").unlink()
    lines: list[str] = []
    with Checkpoints(tmp_path, report=lines.append) as checkpoints:
        assert checkpoints.latest_step() == 2
        assert [line.partition(" ")[0] for line in lines] == [f"{tmp_path / n}" for n in "79"]
        assert checkpoints.save(9, make_state(9), {})
        assert_equal(checkpoints.restore(make_state())[0], make_state(9))


def test_symbolic_link_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "real", 1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "3").symlink_to(tmp_path / "real" / "1")
    with (
        Checkpoints(tmp_path / "run", report=lambda line: None) as checkpoints,
        pytest.raises(ValueError, match="no checkpoint .* can be used .*symbolic link"),
    ):
        checkpoints.restore(make_state())


def change(state: dict[str, Any], kind: str) -> dict[str, Any]:
    kernel = state["params"]["block"]["kernel"]
    if kind == "dtype":
        state["params"]["block"]["kernel"] = kernel.astype(jnp.bfloat16)
    elif kind == "shape":
        state["params"]["block"]["kernel"] = kernel.T
    elif kind == "missing":
        state["params"]["block"]["bias"] = jnp.zeros(3)
    else:
        del state["params"]["block"]["kernel"]
    return state


@pytest.mark.parametrize(
    "kind, text",
    [
        ("dtype", r"kernel is stored as float32\[64, 96\], the model wants bfloat16\[64, 96\]"),
        ("shape", r"kernel is stored as float32\[64, 96\], the model wants float32\[96, 64\]"),
        ("missing", "it lacks params/block/bias, which the model wants"),
        ("extra", "it holds params/block/kernel, which the model has not"),
    ],
)
def test_another_model_is_refused(tmp_path: Path, kind: str, text: str) -> None:
    saved(tmp_path, 1, 2)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(ValueError, match=f"checkpoint 2 in .* is of another model: .*{text}"):
            checkpoints.restore(change(make_state(), kind))
        assert checkpoints.steps() == [1, 2]


def test_order_of_steps(tmp_path: Path) -> None:
    saved(tmp_path, 2, 4, 6)
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        assert not checkpoints.save(6, make_state(60), {})
        with pytest.raises(ValueError, match=r"step 5 is older .* 6: call delete_after\(5\) first"):
            checkpoints.save(5, make_state(5), {})
        assert checkpoints.save(6, make_state(60), {}, force=True)
        assert checkpoints.restore(make_state())[0]["step"] == 60
        checkpoints.delete_after(3)
        assert checkpoints.save(4, make_state(40), {})
        assert checkpoints.steps() == [2, 4]
        assert checkpoints.restore(make_state())[0]["step"] == 40
    with pytest.raises(ValueError, match="keep=0"):
        Checkpoints(tmp_path, keep=0)


def test_donated_buffers_are_saved_as_they_were(tmp_path: Path) -> None:
    state = make_state(1)
    update = jax.jit(lambda s: jax.tree.map(lambda x: x + x, s), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        for _ in range(5):
            state = update(state)
        assert_equal(checkpoints.restore(abstract(state))[0], make_state(1))


CHILD = """
import sys, jax, jax.numpy as jnp, numpy as np
sys.path.insert(0, {root!r})
from launch.run.checkpoint import Checkpoints
{before}
x = np.random.default_rng(0).standard_normal((1024, 1024, {megabytes} // 4)).astype(np.float32)
checkpoints = Checkpoints({directory!r})
checkpoints.save(1, {{"x": jnp.asarray(x), "step": jnp.int32(1)}}, {{}})
checkpoints.wait()
print("first", flush=True)
{then}
"""


def child(directory: Path, then: str, before: str = "", megabytes: int = 4) -> Any:
    code = CHILD.format(
        root=str(ROOT), directory=str(directory), then=then, before=before, megabytes=megabytes
    )
    env = {**os.environ, "XLA_FLAGS": ""}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


SECOND = 'checkpoints.save(2, {"x": jnp.asarray(-x), "step": jnp.int32(2)}, {})\n'


@pytest.mark.parametrize("delay", [0.0, pytest.param(0.05, marks=pytest.mark.slow)])
def test_killed_during_a_save(tmp_path: Path, delay: float) -> None:
    then = 'print("started", flush=True)\n' + SECOND + "import time; time.sleep(60)"
    process = child(tmp_path, then, megabytes=32)
    assert [process.stdout.readline() for _ in range(2)] == ["first\n", "started\n"]
    while not (tmp_path / "2").exists():
        assert process.poll() is None
        time.sleep(0.001)
    time.sleep(delay)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    finished = (tmp_path / "2" / "commit_success.txt").exists()
    target = {"x": jax.ShapeDtypeStruct((1024, 1024, 8), jnp.float32), "step": jnp.int32(0)}
    with Checkpoints(tmp_path, report=lambda line: None) as checkpoints:
        state, _ = checkpoints.restore(target)
        assert state["step"] == (2 if finished else 1)
        assert checkpoints.save(2, target | {"x": state["x"]}, {}, force=True)
        assert checkpoints.latest_step() == 2
    assert delay or not finished, "killed too late to test anything"


def test_full_disk_is_an_error_and_the_step_before_stays(tmp_path: Path) -> None:
    before = "import resource"  # a limit on the size of a file fails as a full disk does
    then = (
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))\n"
        + SECOND
        + """
try:
    checkpoints.wait()
except OSError as error:
    print("OSError", error, flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(checkpoints.latest_step(), flush=True)
print(checkpoints.save(2, {"x": jnp.asarray(-x), "step": jnp.int32(2)}, {}), flush=True)
print(checkpoints.latest_step(), flush=True)
"""
    )
    out, err = child(tmp_path, then, before).communicate(timeout=120)
    lines = out.splitlines()
    assert lines[0] == "first", err
    assert lines[1].startswith(f"OSError a checkpoint could not be written to {tmp_path}"), err
    assert lines[2:] == ["1", "True", "2"], err
