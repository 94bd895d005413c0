"""The processes of one run, and the devices they have.

Processes join when they are told to (`--coordinator --num_processes --process_id`, or
`--distributed` where the cluster announces itself to JAX, as TPU pods and Kubernetes jobs do), and
when Slurm's `srun` or Open MPI's `mpirun` started several. A shell inside an allocation, where
only SLURM_NTASKS is set, announces nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from launch.cluster.rendezvous import meet

JOIN_TIMEOUT = 60  # seconds for all processes to come
HEARTBEAT_TIMEOUT = 30  # seconds of silence after which a peer is lost
SHUTDOWN_TIMEOUT = 60  # seconds for all processes to leave


@dataclasses.dataclass(frozen=True)
class Cluster:
    """One process among several."""

    coordinator: str  # HOST:PORT of process 0
    num_processes: int
    process_id: int
    local_id: int | None = None  # which of its machine's processes it is; None: takes all devices


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this module."""
    group = parser.add_argument_group("several processes")
    group.add_argument(
        "--distributed", action="store_true", help="join the processes that the cluster announces"
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    group.add_argument("--num_processes", type=int, metavar="N", help="of the run; 1: only this")
    group.add_argument("--process_id", type=int, metavar="I", help="of this one, from 0")
    group.add_argument(
        "--join_timeout",
        type=int,
        default=JOIN_TIMEOUT,
        metavar="SECONDS",
        help="for all processes to come",
    )


def initialize(arguments: argparse.Namespace) -> None:
    """Join the other processes, if there are any, and check that the devices are those asked for.

    Raises ValueError for flags that do not fit, processes that do not come, devices that are not
    there.
    """
    timeout = arguments.join_timeout
    cluster = find_cluster(arguments, os.environ)
    if cluster is not None:
        meet(cluster.coordinator, cluster.num_processes, cluster.process_id, timeout)
        _join(timeout, cluster)
    elif arguments.distributed and arguments.num_processes != 1:
        try:
            _join(timeout)
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                "--distributed: no cluster announces itself here "
                f"({' '.join(str(error).split())[:200]}); name one with --coordinator=HOST:PORT "
                "--num_processes=N --process_id=I"
            ) from error
    check_devices(arguments.simulate)


def find_cluster(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Cluster | None:
    """The several processes that the flags or the environment announce; None when alone.

    Raises ValueError for flags that do not fit together.
    """
    flags = {
        "--coordinator": arguments.coordinator,
        "--num_processes": arguments.num_processes,
        "--process_id": arguments.process_id,
    }
    missing = [flag for flag, value in flags.items() if value is None]
    if arguments.num_processes == 1:
        return None
    if len(missing) == len(flags):
        return _slurm(environ) or _open_mpi(environ)
    if missing:
        given = ", ".join(flag for flag in flags if flag not in missing)
        raise ValueError(f"{given} without {' and '.join(missing)}: give all three")
    number, index = arguments.num_processes, arguments.process_id
    if not 0 <= index < number:
        near = min(max(index, 0), max(number - 1, 0))
        raise ValueError(
            f"--process_id={index} with --num_processes={number}: must be from 0 to "
            f"{number - 1}; nearest: {near}"
        )
    if not re.fullmatch(r".+:\d{1,5}", arguments.coordinator):
        raise ValueError(
            f"--coordinator={arguments.coordinator}: must be HOST:PORT; "
            f"nearest: {arguments.coordinator.partition(':')[0] or 'localhost'}:8476"
        )
    return Cluster(arguments.coordinator, number, index)


def _slurm(environ: Mapping[str, str]) -> Cluster | None:
    """The tasks of a job step of srun; the port is made from the job's number."""
    wanted = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID")
    if any(name not in environ for name in wanted) or int(environ["SLURM_NTASKS"]) < 2:
        return None
    host = re.sub(r"\[(\d+).*", r"\1", environ["SLURM_STEP_NODELIST"]).partition(",")[0]
    port = 61440 + int(environ["SLURM_JOB_ID"]) % 4096
    local = int(environ["SLURM_LOCALID"]) if "SLURM_LOCALID" in environ else None
    return Cluster(
        f"{host}:{port}", int(environ["SLURM_NTASKS"]), int(environ["SLURM_PROCID"]), local
    )


def _open_mpi(environ: Mapping[str, str]) -> Cluster | None:
    """The ranks of mpirun; process 0 is on the machine that it was started on."""
    wanted = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_MCA_orte_hnp_uri")
    if any(name not in environ for name in wanted) or int(environ["OMPI_COMM_WORLD_SIZE"]) < 2:
        return None
    job, _, place = environ["OMPI_MCA_orte_hnp_uri"].partition(".")
    host = re.search(r"tcp6?://(?:\[([^,\]]+)|([^,:]+))", place)
    if host is None or not job.isdecimal():
        return None
    port = 61440 + int(job) // 4096 % 4096
    name = "OMPI_COMM_WORLD_LOCAL_RANK"
    return Cluster(
        f"[{host[1]}]:{port}" if host[1] else f"{host[2]}:{port}",
        int(environ["OMPI_COMM_WORLD_SIZE"]),
        int(environ["OMPI_COMM_WORLD_RANK"]),
        int(environ[name]) if name in environ else None,
    )


def _join(timeout: int, cluster: Cluster | None = None) -> None:
    timeouts: dict[str, Any] = {
        "initialization_timeout": timeout,
        "heartbeat_timeout_seconds": HEARTBEAT_TIMEOUT,
        "shutdown_timeout_seconds": SHUTDOWN_TIMEOUT,
    }
    if cluster is None:
        jax.distributed.initialize(**timeouts)
        return
    jax.distributed.initialize(
        cluster.coordinator,
        cluster.num_processes,
        cluster.process_id,
        local_device_ids=None if cluster.local_id is None else [cluster.local_id],
        cluster_detection_method="deactivate",
        **timeouts,
    )


def simulate(count: int) -> None:
    """`count` CPU devices in place of the real ones; before JAX has made any device.

    Raises ValueError for a count below 1. `check_devices` finds out when it came too late.
    """
    if count < 1:
        raise ValueError(f"--simulate={count}: at least one device is needed; nearest: 1")
    flags = [f for f in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in f]
    flags.append(f"--xla_force_host_platform_device_count={count}")
    os.environ["XLA_FLAGS"] = " ".join(flags)
    os.environ["JAX_PLATFORMS"] = "cpu"
    # The size of XLA's thread pool: with fewer threads than devices a collective can deadlock.
    os.environ["NPROC"] = str(max(16, 2 * count))
    jax.config.update("jax_platforms", "cpu")  # JAX read the variable when it was imported


def check_devices(simulated: int = 0) -> None:
    """Refuse to go on with other devices than were asked for.

    Args:
      simulated: this many CPU devices; 0: those of JAX_PLATFORMS or, where it is not set, the
        accelerators that this machine has.
    Raises:
      ValueError: they are not there, such as a GPU that JAX passes over for lack of its plugin.
    """
    wanted = os.environ.get("JAX_PLATFORMS", "")
    try:
        backend = jax.default_backend()
    except (RuntimeError, AssertionError) as error:  # JAX asserts where a plugin is missing
        raise ValueError(
            f"JAX_PLATFORMS={wanted}: JAX finds no such device here; install the extra that drives "
            "it (tessera[cuda12], [cuda13] or [tpu]), or set JAX_PLATFORMS=cpu"
        ) from error
    if simulated and (backend != "cpu" or jax.local_device_count() != simulated):
        raise ValueError(
            f"--simulate={simulated}: JAX already has {jax.local_device_count()} {backend} "
            "devices; simulate before it makes any"
        )
    hidden = [] if wanted or backend != "cpu" else _accelerators(Path("/dev"))
    if hidden:
        raise ValueError(
            f"this machine has {hidden[0]} but JAX runs on its CPU: install the extra that drives "
            "it (tessera[cuda12], [cuda13] or [tpu]), or set JAX_PLATFORMS=cpu"
        )


def _accelerators(directory: Path) -> list[str]:
    """The device files of GPUs and TPUs."""
    pattern = re.compile(r"(nvidia|accel)\d+")
    return sorted(str(p) for p in directory.iterdir() if pattern.fullmatch(p.name))


def check_same(what: str, text: str) -> None:
    """Refuse to go on when `text`, such as the config, differs between processes.

    Raises ValueError, in all of them, that names the processes that differ from the first.
    """
    if jax.process_count() == 1:
        return
    own = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    everyone = np.asarray(multihost_utils.process_allgather(own))
    if others := [i for i, row in enumerate(everyone) if not np.array_equal(row, everyone[0])]:
        raise ValueError(
            f"{what} of process {', '.join(map(str, others))} is not that of process 0: "
            "start all processes with the same command and files"
        )


def check_shared(directory: str | Path) -> None:
    """Refuse a directory that not all processes see, in which a save would wait for ever.

    Raises ValueError, in all of them, that names the processes that do not see it.
    """
    if jax.process_count() == 1:
        return
    first = jax.process_index() == 0
    mark = Path(directory) / ".shared"
    nonce = np.frombuffer(os.urandom(8), np.uint8)
    nonce = np.asarray(multihost_utils.broadcast_one_to_all(nonce))
    if first:
        mark.write_bytes(nonce.tobytes())
    multihost_utils.sync_global_devices("a mark in the shared directory")
    seen = mark.exists() and mark.read_bytes() == nonce.tobytes()
    everyone = np.asarray(multihost_utils.process_allgather(np.asarray(seen)))
    if first:
        mark.unlink()
    if blind := np.flatnonzero(~everyone.reshape(-1)).tolist():
        raise ValueError(
            f"{directory} is not shared: process {', '.join(map(str, blind))} does not see what "
            "process 0 writes there; name a directory on a file system that all machines mount"
        )
