"""Whole runs of several processes: the numbers of one process with as many devices."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch import train
from launch.run import errors
from tests.launch import runs

DEVICES = 8


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def announced(how: str, count: int) -> list[tuple[list[str], dict[str, str]]]:
    """Flags and environment of each process, as flags, Slurm's srun or Open MPI's mpirun do it."""
    if how == "flags":
        flags = [f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={count}"]
        return [([*flags, f"--process_id={i}"], {}) for i in range(count)]
    job = free_port() % 4096
    if how == "slurm":
        step = {"SLURM_JOB_ID": f"{job}", "SLURM_STEP_NODELIST": "127.0.0.1"}
        step |= {"SLURM_NTASKS": f"{count}"}
        return [([], {**step, "SLURM_PROCID": f"{i}"}) for i in range(count)]
    world = {"OMPI_MCA_orte_hnp_uri": f"{job * 4096}.0;tcp://127.0.0.1:1"}
    world |= {"OMPI_COMM_WORLD_SIZE": f"{count}"}
    return [([], {**world, "OMPI_COMM_WORLD_RANK": f"{i}"}) for i in range(count)]


def together(
    workdir: Path, count: int, how: str, environment: dict[str, str], fault: str = "", **keys: Any
) -> tuple[int, str]:
    """One run of `count` processes. Its exit code, and what process 0 wrote."""
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "launch.train", *runs.arguments(workdir, **keys)),
                *(f"--simulate={DEVICES // count}", *flags),
            ],
            cwd=runs.ROOT,
            env=environment | cluster | {"FAULT": fault, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for flags, cluster in announced(how, count)
    ]
    try:
        ends = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    codes = {process.returncode for process in processes}
    assert len(codes) == 1, ends
    return codes.pop(), ends[0]


def mesh_of(**sizes: int) -> dict[str, Any]:
    return {"mesh__data": 1, **{f"mesh__{axis}": size for axis, size in sizes.items()}}


# Where tensor spans processes they load the same rows; in the last case two of four do.
CASES = [
    (2, "slurm", {"tensor": 8}),
    pytest.param(2, "flags", {"data": 2, "fsdp": 4}, marks=pytest.mark.slow),
    pytest.param(2, "flags", {"tensor": 2, "fsdp": 4}, marks=pytest.mark.slow),
    pytest.param(4, "mpi", {"fsdp": 2, "tensor": 4}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("count", "how", "sizes"), CASES)
def test_losses_are_those_of_one_process(
    tmp_path: Path, user_environment: dict[str, str], count: int, how: str, sizes: dict[str, int]
) -> None:
    keys = {**mesh_of(**sizes), "sample__length": 4, "train__steps": 4}
    code, output = together(tmp_path / "several", count, how, user_environment, **keys)
    assert code == errors.DONE, output
    assert "--- sample ---" in output
    assert train.main(runs.arguments(tmp_path / "one", **keys)) == errors.DONE
    for split in ("train", "validation", "test"):
        ours, theirs = (runs.curve(tmp_path / name, split=split) for name in ("several", "one"))
        assert ours.keys() == theirs.keys()
        assert runs.relative(ours, theirs) < 1e-5


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(
    tmp_path: Path, user_environment: dict[str, str]
) -> None:
    keys = {**mesh_of(fsdp=4, tensor=2), "train__steps": 12, "train__checkpoint_every": 0}
    stopped = []
    for count, fault in ((2, "sigterm@2"), (1, "sigterm@7")):
        code, output = together(tmp_path / "moved", count, "flags", user_environment, fault, **keys)
        assert code == errors.PREEMPTED, output
        stopped.append(max(runs.curve(tmp_path / "moved")))
    code, output = together(tmp_path / "moved", 4, "flags", user_environment, **keys)
    assert code == errors.DONE, output
    assert 2 <= stopped[0] < stopped[1] < 12
    assert f"going on from step {stopped[1]}" in output
    assert train.main(runs.arguments(tmp_path / "straight", **keys)) == errors.DONE
    ours, theirs = runs.curve(tmp_path / "moved"), runs.curve(tmp_path / "straight")
    assert ours.keys() == theirs.keys()
    assert runs.relative(ours, theirs) < 1e-5
