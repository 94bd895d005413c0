"""Two processes of four simulated devices each: they join, agree, save and stop together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from launch.run.checkpoint import Checkpoints

ROOT = Path(__file__).resolve().parents[3]

PROLOGUE = """
import argparse, os, signal, sys, time
from pathlib import Path
from launch.cluster import distributed
parser = argparse.ArgumentParser()
parser.add_argument("--simulate", type=int, default=4)
distributed.add_arguments(parser)
arguments = parser.parse_args(sys.argv[2:])
directory, me = Path(sys.argv[1]), arguments.process_id
distributed.simulate(4)
distributed.initialize(arguments)
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from launch.run.checkpoint import Checkpoints
from launch.run.signals import Signals
mesh = jax.make_mesh((8,), ("a",), (AxisType.Auto,))
full = np.arange(64 * 3, dtype=np.float32).reshape(64, 3)
def tell(*words):  # not print: JAX's collectives write to standard output, in the middle of lines
    with open(directory / f"told.{me}", "a") as file:
        print(*words, file=file)
def place(x, *spec):
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])
def make(step):
    return {"kernel": place(full * step, "a"), "step": place(np.asarray(step, np.int32))}
"""

AGREE = """
tell(jax.process_count(), jax.device_count())
distributed.check_same("the config", "equal")
distributed.check_shared(directory)
for check in (
    lambda: distributed.check_same("the config", f"of process {me}"),
    lambda: distributed.check_shared(directory / ("mine" if me else "")),
):
    try:
        check()
    except ValueError as error:
        tell(error)
"""

SAVE = """
lines = []
with Checkpoints(directory / "checkpoints", report=lines.append) as checkpoints:
    for step in (1, 2):
        checkpoints.save(step, make(step), {"step": step})
    checkpoints.wait()
    if me == 0:
        largest = max((p for p in (directory / "checkpoints" / "2" / "state").rglob("*")
                       if p.is_file()), key=lambda p: p.stat().st_size)
        os.truncate(largest, 20)
    jax.experimental.multihost_utils.sync_global_devices("damaged")
    state, metadata = checkpoints.restore(make(0))
    local = np.concatenate([np.asarray(s.data) for s in state["kernel"].addressable_shards])
    same = np.array_equal(local, full[32 * me : 32 * me + 32])
    tell(int(state["step"]), metadata, same, checkpoints.steps(), len(lines))
    tell(checkpoints.save(2, make(20), {}))
"""

ROWS = """
import types
from launch.run.step import to_mesh
from nn import parallel
from nn.parallel import sequence
batch = {"tokens": np.arange(16 * 32).reshape(16, 32), "labels": np.arange(16)}
for sizes in ({"pipe": 8}, {"data": 2, "fsdp": 4}, {"context": 8}, {"data": 2, "context": 4},
              {"pipe": 2, "data": 2, "tensor": 2}, {"tensor": 8}, {"expert": 4, "tensor": 2}):
    for devices in (jax.devices(), jax.devices()[::2] + jax.devices()[1::2]):
        mesh = parallel.make_mesh(sizes, devices)
        order = sequence.order(32, mesh.shape["context"], "zigzag")
        task = types.SimpleNamespace(
            mesh=mesh,
            arrange=lambda rows: rows | {"tokens": rows["tokens"][:, order]},
            batch_specs=lambda rows: {
                name: parallel.batch_spec(mesh, x.ndim, 1) for name, x in rows.items()
            },
        )
        shares, count = parallel.row_shares(mesh)
        parts = {name: np.split(x, count) for name, x in batch.items()}
        held = {name: np.concatenate([x[i] for i in shares]) for name, x in parts.items()}
        placed = to_mesh(types.SimpleNamespace(task=task), held)
        whole = task.arrange(batch)
        same = all(
            np.array_equal(shard.data, whole[name][shard.index])
            for name, x in placed.items() for shard in x.addressable_shards
        )
        tell(*shares, "of", count, same)
"""

STOP = """
with Signals() as signals:
    for step in range(1, 300):
        time.sleep(0.05)
        if step == 10:
            tell("ready")
        if signals.stop_at(step):
            tell("stopped", step, signals.received)
            with Checkpoints(directory / "checkpoints") as checkpoints:
                checkpoints.save(step, make(step), {})
            break
os._exit(75)
"""


def start(directory: Path, code: str) -> list[subprocess.Popen[str]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    ours = ("JAX_PLATFORMS", "XLA_FLAGS", "NPROC")
    env = {name: value for name, value in os.environ.items() if name not in ours}
    flags = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    return [
        subprocess.Popen(
            [sys.executable, "-c", PROLOGUE + code, str(directory), *flags, f"--process_id={i}"],
            cwd=ROOT,
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for i in range(2)
    ]


def told(directory: Path, processes: list[subprocess.Popen[str]], code: int = 0) -> list[list[str]]:
    """The lines that each has told, once both have ended with exit code `code`."""
    try:
        ends = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [code, code], ends
    return [(directory / f"told.{i}").read_text().splitlines() for i in range(2)]


def restored(directory: Path) -> dict[str, jax.Array]:
    """The newest state, on a mesh of this process."""
    mesh = jax.make_mesh((3,), ("a",), (AxisType.Auto,), devices=jax.devices()[:3])
    whole = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec(None, "a"))
    target = {
        "kernel": jax.ShapeDtypeStruct((64, 3), jnp.float32, sharding=split),
        "step": jax.ShapeDtypeStruct((), jnp.int32, sharding=whole),
    }
    with Checkpoints(directory / "checkpoints", keep=None) as checkpoints:
        return checkpoints.restore(target)[0]


@pytest.mark.slow
def test_they_agree_or_say_who_differs(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    lines = told(tmp_path, start(tmp_path, AGREE))
    for found in lines:
        assert found[0] == "2 8" and len(found) == 3
        assert found[1].startswith("the config of process 1 is not that of process 0: start all")
        assert "is not shared: process 1 does not see what process 0 writes there" in found[2]


@pytest.mark.slow
def test_they_save_together_and_one_process_goes_on(tmp_path: Path) -> None:
    lines = told(tmp_path, start(tmp_path, SAVE))
    expected = ["1 {'step': 1} True [1]", "True"]
    assert [lines[0][0], lines[0][1]] == [f"{expected[0]} 2", "True"]
    assert [lines[1][0], lines[1][1]] == [f"{expected[0]} 0", "True"]
    state = restored(tmp_path)
    assert int(state["step"]) == 20
    full = np.arange(64 * 3, dtype=np.float32).reshape(64, 3)
    np.testing.assert_array_equal(np.asarray(state["kernel"]), 20 * full)
    assert (tmp_path / "checkpoints" / "2.damaged").is_dir()


@pytest.mark.slow
def test_each_loads_the_rows_that_its_devices_hold(tmp_path: Path) -> None:
    """On each mesh with the devices in order, then with those of one process apart."""
    lines = told(tmp_path, start(tmp_path, ROWS))
    assert [line.endswith("True") for found in lines for line in found] == [True] * 28
    shares = [[line.removesuffix(" True") for line in found] for found in lines]
    every, half, apart = ("0 of 1", "0 of 1"), ("0 of 2", "1 of 2"), ("0 2 of 4", "1 3 of 4")
    meshes = [(every, every), (half, apart), (every, every), (half, every), (every, half)]
    meshes += [(every, every), (half, apart)]
    assert list(zip(*shares, strict=True)) == [pair for mesh in meshes for pair in mesh]


@pytest.mark.slow
def test_a_signal_to_one_stops_both_at_the_same_step(tmp_path: Path) -> None:
    processes = start(tmp_path, STOP)
    while not (tmp_path / "told.1").exists():
        assert processes[1].poll() is None
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    lines = told(tmp_path, processes, code=75)
    step = lines[0][-1].split()[1]
    assert [line[-1] for line in lines] == [f"stopped {step} SIGTERM"] * 2
    assert int(restored(tmp_path)["step"]) == int(step)
