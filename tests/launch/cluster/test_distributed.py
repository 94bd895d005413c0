"""Who announces several processes, and which devices a run may take."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from launch.cluster import distributed
from launch.cluster.distributed import Cluster, find_cluster

ROOT = Path(__file__).resolve().parents[3]

SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "node[003-004,7],gpu2",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "1",
}
MPI = {
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_MCA_orte_hnp_uri": "12288.0;tcp://10.96.0.1,10.148.0.1:34911",
}


def flags(**changes: Any) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--simulate", type=int, default=0)
    distributed.add_arguments(parser)
    return argparse.Namespace(**{**vars(parser.parse_args([])), **changes})


def test_alone() -> None:
    assert find_cluster(flags(), {}) is None
    assert find_cluster(flags(distributed=True), {}) is None


def test_slurm_step() -> None:
    assert find_cluster(flags(), SLURM) == Cluster("node003:61441", 4, 2, 1)
    for nodes, host in (("tux", "tux"), ("a,b", "a"), ("x[1,4]", "x1"), ("n-2-[07-09]", "n-2-07")):
        found = find_cluster(flags(), SLURM | {"SLURM_STEP_NODELIST": nodes})
        assert found is not None and found.coordinator == f"{host}:61441"


@pytest.mark.parametrize("gone", ["SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_JOB_ID"])
def test_stray_slurm_variables_announce_nothing(gone: str) -> None:
    assert find_cluster(flags(), {k: v for k, v in SLURM.items() if k != gone}) is None
    assert find_cluster(flags(), SLURM | {"SLURM_NTASKS": "1"}) is None
    assert find_cluster(flags(num_processes=1), SLURM) is None  # the way to be alone in a step


def test_open_mpi() -> None:
    assert find_cluster(flags(), MPI) == Cluster("10.96.0.1:61443", 2, 1, 1)
    uri = {"OMPI_MCA_orte_hnp_uri": "12288.0;tcp6://[fe80::1,2620::2]:43370"}
    assert find_cluster(flags(), MPI | uri) == Cluster("[fe80::1]:61443", 2, 1, 1)
    assert find_cluster(flags(), {"OMPI_COMM_WORLD_SIZE": "2"}) is None


def test_flags_come_before_the_environment() -> None:
    given = flags(coordinator="10.0.0.1:8476", num_processes=2, process_id=1)
    assert find_cluster(given, SLURM | MPI) == Cluster("10.0.0.1:8476", 2, 1)


@pytest.mark.parametrize(
    "given, text",
    [
        (dict(coordinator="a:1"), "--coordinator without --num_processes and --process_id"),
        (dict(process_id=0, num_processes=2), "--num_processes, --process_id without --coord"),
        (dict(coordinator="a:1", process_id=2, num_processes=2), "must be from 0 to 1; nearest: 1"),
        (dict(coordinator="a:1", process_id=-1, num_processes=2), "nearest: 0"),
        (dict(coordinator="a", process_id=1, num_processes=2), "HOST:PORT; nearest: a:8476"),
    ],
)
def test_flags_that_do_not_fit(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        find_cluster(flags(**given), {})


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python code in a process of its own, in an environment without our variables."""
    ours = ("JAX_PLATFORMS", "XLA_FLAGS", "NPROC")
    env = {name: value for name, value in os.environ.items() if name not in ours}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**env, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_simulate_after_jax_was_imported() -> None:
    code = (
        "import os, jax\n"
        "from launch.cluster import distributed\n"
        "distributed.simulate(5)\n"
        "distributed.check_devices(5)\n"
        "print(jax.default_backend(), jax.device_count(), os.environ['NPROC'])\n"
        "print(os.environ['XLA_FLAGS'])\n"
        "distributed.simulate(3)\n"
        "try: distributed.check_devices(3)\n"
        "except ValueError as error: print(error)\n"
    )
    done = run(
        code,
        JAX_PLATFORMS="cuda",  # what JAX reads when it is imported
        XLA_FLAGS="--xla_cpu_enable_fast_math=false --xla_force_host_platform_device_count=2",
    )
    assert done.stdout.splitlines() == [
        "cpu 5 16",
        "--xla_cpu_enable_fast_math=false --xla_force_host_platform_device_count=5",
        "--simulate=3: JAX already has 5 cpu devices; simulate before it makes any",
    ], done.stderr


def test_a_backend_that_is_not_there_is_refused() -> None:
    code = (
        "from launch.cluster import distributed\n"
        "try: distributed.check_devices()\n"
        "except ValueError as error: print(error)\n"
    )
    done = run(code, JAX_PLATFORMS="cuda")
    assert done.stdout.startswith("JAX_PLATFORMS=cuda: JAX finds no such device here; install"), (
        done.stderr
    )
    assert done.stdout.count("\n") == 1


def test_simulate_needs_a_device() -> None:
    with pytest.raises(ValueError, match="--simulate=0: at least one device is needed; nearest: 1"):
        distributed.simulate(0)


def test_an_accelerator_that_jax_passes_over_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("nvidia0", "nvidiactl", "null", "accel"):
        (tmp_path / name).touch()
    found = distributed._accelerators(tmp_path)
    assert found == [str(tmp_path / "nvidia0")]
    monkeypatch.setattr(distributed, "_accelerators", lambda directory: found)
    distributed.check_devices()  # JAX_PLATFORMS=cpu: it was asked for
    monkeypatch.delenv("JAX_PLATFORMS")
    with pytest.raises(ValueError, match="nvidia0 but JAX runs on its CPU: install the extra"):
        distributed.check_devices()


def test_alone_there_is_nothing_to_compare(tmp_path: Path) -> None:
    assert jax.process_count() == 1
    distributed.initialize(flags())
    distributed.check_same("the config", "x")
    distributed.check_shared(tmp_path)
    assert not list(tmp_path.iterdir())


def test_distributed_without_a_cluster() -> None:
    with pytest.raises(ValueError, match="--distributed: no cluster announces itself here"):
        distributed.initialize(flags(distributed=True))
