"""Cells as tasks of a Slurm job array, by way of submitit, which the extra `slurm` installs.

A task is a queue of one cell in the directory that all machines see, so claims, records, retries
and results are those of a sweep on one machine, and `status` works anywhere. Before its time is
over, or when Slurm preempts it, a task is told by SIGUSR2: its run saves, and then it is put back
into the queue of Slurm, to go on from there.
"""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Any

from launch.run import config as configs
from launch.run import errors
from launch.sweeping import slots
from launch.sweeping.cells import Cell
from launch.sweeping.executor import Options, Queue
from launch.sweeping.store import Record, Store

NOTICE = 120  # seconds before the end at which a task is told
REQUEUES = 1000  # times that a task may use up its time; submitit needs a number


@dataclasses.dataclass
class Job:
    """What a task does; it travels to the machine as it is.

    directory: of the sweep. config: JSON. devices: accelerators of the run.
    options: fields of `Options`, all but the environments.
    """

    directory: str
    cell: str
    overrides: dict[str, Any]
    config: str
    devices: int
    options: dict[str, Any]

    def __call__(self) -> int:
        """Run the cell to its end, or until Slurm wants the machine back; the exit code."""
        told = False

        def stop(*_: Any) -> None:
            nonlocal told
            told = True
            os.kill(os.getpid(), signal.SIGTERM)  # as anyone would stop a queue

        before = signal.signal(signal.SIGUSR2, stop)
        cell = Cell(self.cell, self.overrides, configs.from_json(self.config))
        environments = slots.environments(1, self.devices, 0)
        how = Options(environments, wait=False, **self.options)
        code = Queue(Store(self.directory), [cell], how, _report).run()
        signal.signal(signal.SIGUSR2, before)
        if told and code == errors.PREEMPTED:
            os.kill(os.getpid(), signal.SIGUSR2)  # all is saved: submitit may put the task back
        return code

    def checkpoint(self) -> Any:
        """What submitit puts back."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _report(record: Record) -> None:
    print(record["status"], record["id"], record["reason"], flush=True)


def submit(
    store: Store,
    cells: Sequence[Cell],
    devices: int,
    parallel: int,
    parameters: Mapping[str, str],
    options: Mapping[str, Any],
) -> list[str]:
    """Submit the cells that have not ended and are not being run. Returns the ids of the tasks.

    Args:
      devices: accelerators of each run. parallel: tasks at a time; 0: no limit of our own.
      parameters: of submitit's SlurmExecutor, such as partition, time (minutes), mem, account.
      options: see `Job`.
    Raises:
      ValueError: submitit or Slurm is not there, or does not know a parameter.
    """
    try:
        import submitit
        from submitit.core.utils import FailedJobError
    except ImportError as error:
        raise ValueError(
            "--executor=slurm needs the extra: pip install 'tessera[slurm]'"
        ) from error
    try:
        executor = submitit.SlurmExecutor(store.path / ".slurm", max_num_timeout=REQUEUES)
    except RuntimeError as error:  # there is no srun
        raise ValueError(f"--executor=slurm: {error}") from error
    wanted: dict[str, Any] = {"job_name": store.path.name, "signal_delay_s": NOTICE}
    wanted |= {"gpus_per_node": devices} if devices else {}
    wanted |= {"array_parallelism": parallel} if parallel else {}
    wanted |= {name: int(x) if x.isdecimal() else x for name, x in parameters.items()}
    executor.update_parameters(**wanted)
    waiting = [c for c in cells if not store.read(c)["final"] and not store.is_claimed(c.id)]
    if not waiting:
        return []
    try:
        with executor.batch():
            jobs = [executor.submit(job_of(store, cell, devices, options)) for cell in waiting]
    except FailedJobError as error:  # what sbatch says
        raise ValueError(f"--executor=slurm: {error}") from error
    return [job.job_id for job in jobs]


def job_of(store: Store, cell: Cell, devices: int, options: Mapping[str, Any]) -> Job:
    config = configs.to_json(cell.config)
    return Job(str(store.path), cell.id, dict(cell.overrides), config, devices, dict(options))
