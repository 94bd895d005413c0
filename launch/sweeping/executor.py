"""Runs the cells of a sweep on this machine: N slots, each with a worker, until all have ended.

A slot's worker trains one cell after another in one process (`isolate`: a process per cell). One
that dies takes only its cell with it. Whatever happens to the queue, the records say where it was:

- killed: its workers see their input end, save, and stop; the claims of its cells are free, and the
  next queue goes on from their checkpoints;
- SIGTERM or SIGINT: the same, but waited for, and the exit code is 75;
- another queue at work on the directory: each cell is run by the one that has claimed it.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import queue
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from launch.run import config as configs
from launch.run import errors
from launch.run.signals import Signals
from launch.sweeping import record as records
from launch.sweeping import slots
from launch.sweeping.cells import Cell
from launch.sweeping.claims import Claim
from launch.sweeping.outcome import Outcome, judge, last_words
from launch.sweeping.slots import Worker
from launch.sweeping.store import Record, Store

FAILED = 1  # exit code of a queue that has seen runs fail
HEARTBEAT = 30.0  # seconds
# What a record keeps from one try to the next.
KEPT = ("id", "overrides", "attempts", "interruptions", "seconds", "compile_seconds")
POLL = 0.2  # seconds between two looks at the clock
BUSY = 2.0  # seconds before a cell that another queue has is asked for again


@dataclasses.dataclass(frozen=True)
class Options:
    """environments: of each slot's processes. worker: the command of a worker.

    time_limit: minutes of a run, over all its tries; 0: none. retries: of runs that fail.
    isolate: a process per run. metric: that has to be finite at the end.
    wait: for the cells that other queues have.
    grace: seconds that a run has to save and stop before it is killed.
    """

    environments: Sequence[dict[str, str]]
    worker: Sequence[str] = slots.WORKER
    time_limit: float = 0.0
    retries: int = 2
    isolate: bool = False
    metric: str = "loss"
    wait: bool = True
    grace: float = 60.0


@dataclasses.dataclass
class Running:
    """A cell that is being run. since, step: when and where this try began."""

    cell: Cell
    claim: Claim
    record: Record
    since: float
    step: int
    late: bool = False


@dataclasses.dataclass
class Slot:
    """Room for one run at a time."""

    number: int
    environment: dict[str, str]
    worker: Worker | None = None
    running: Running | None = None


class StartError(Exception):
    """A worker ended before it could take an order, as where its devices are missing."""


class Queue:
    """Runs cells of a store.

    Args:
      report: called with a record when its run starts, and when it has ended or was interrupted.
      tick: called several times a second with the cells that are being run.
    """

    def __init__(
        self,
        store: Store,
        cells: Sequence[Cell],
        options: Options,
        report: Callable[[Record], None] = lambda record: None,
        tick: Callable[[list[str]], None] = lambda cells: None,
    ) -> None:
        self.store, self.options, self.report, self.tick = store, options, report, tick
        self.waiting = collections.deque(cells)
        self.asked: dict[str, float] = {}  # when a cell that another queue has was asked for
        environments = [slots.sharing(env, store.cache) for env in options.environments]
        self.slots = [Slot(i, env) for i, env in enumerate(environments)]
        self.events: queue.SimpleQueue[tuple[Worker, dict[str, Any] | None]] = queue.SimpleQueue()
        self.signals = Signals()
        self.failed = self.stopping = False
        self.beaten = time.monotonic()

    def run(self) -> int:
        """Until every cell has ended. Returns an exit code: 0, 1 where some failed, 75 if stopped.

        Raises StartError where workers cannot start.
        """
        with self.signals:
            try:
                while self.waiting or any(slot.running for slot in self.slots):
                    if self.signals.received:
                        return errors.PREEMPTED
                    for slot in self.slots:
                        self._fill(slot)
                    if not self.options.wait and not any(slot.running for slot in self.slots):
                        break
                    self._wait()
            finally:
                self._stop()
        self.store.write_results()
        if all(record["final"] for record in self.store.records()):
            shutil.rmtree(self.store.cache, ignore_errors=True)
        return FAILED if self.failed else errors.DONE

    def _fill(self, slot: Slot) -> None:
        """Give a slot that is idle the next cell that is free."""
        if slot.running or (slot.worker and slot.worker.retired):
            return
        if (running := self._next()) is None:
            return
        if slot.worker is None:
            log = self.store.path / f".slot{slot.number}.log"
            command, env = self.options.worker, slot.environment
            slot.worker = Worker(command, env, log, self.events)
        slot.running = running
        slot.worker.order(self.store.run(running.cell.id), configs.to_json(running.cell.config))

    def _next(self) -> Running | None:
        """Claim the first cell that nobody runs; one that has ended meanwhile is dropped."""
        for _ in range(len(self.waiting)):
            cell = self.waiting.popleft()
            soon = cell.id in self.asked and time.monotonic() < self.asked[cell.id] + BUSY
            claim = None if soon else self.store.claim(cell.id)
            if claim is None:
                self.waiting.append(cell)
                if not soon:
                    self.asked[cell.id] = time.monotonic()
                continue
            record = self.store.read(cell)
            if not record["final"]:
                return self._start(cell, claim, record)
            self._count(record)
            claim.release()
        return None

    def _start(self, cell: Cell, claim: Claim, record: Record) -> Running:
        workdir = self.store.run(cell.id)
        if record["status"] == "running":  # its queue was killed
            record["interruptions"] += 1
            record["seconds"] += max(0.0, _status(workdir, "heartbeat") - record["started"])
        record = {name: record[name] for name in KEPT} | records.of_config(cell.config)
        record |= {"status": "running", "final": False, "reason": "", "started": time.time()}
        self.store.write(record)
        self.report(record)
        return Running(cell, claim, record, time.monotonic(), int(_status(workdir, "step")))

    def _wait(self) -> None:
        """Until something happens, but not for long."""
        try:
            worker, message = self.events.get(timeout=POLL)
        except queue.Empty:
            pass
        else:
            self._hear(worker, message)
        now, running = time.monotonic(), [slot.running for slot in self.slots if slot.running]
        if now > self.beaten + HEARTBEAT:
            self.beaten = now
            for run in running:
                run.claim.beat()
        for slot in self.slots:
            self._watch(slot, now)
        self.tick([run.cell.id for run in running])

    def _watch(self, slot: Slot, now: float) -> None:
        """Stop a run that is over its time, and kill what does not stop."""
        run, limit = slot.running, 60 * self.options.time_limit
        if run and slot.worker and limit and not run.late:
            run.late = run.record["seconds"] + now - run.since > limit
            if run.late:
                slot.worker.stop(self.options.grace)
        if slot.worker:
            slot.worker.kill_if_late()

    def _hear(self, worker: Worker, message: dict[str, Any] | None) -> None:
        slot = next(slot for slot in self.slots if slot.worker is worker)
        if message is None:
            worker.close()
            slot.worker = None
            if slot.running and worker.ready:
                self._end(slot, worker.process.returncode)
            elif slot.running and not (slot.running.late or self.stopping):
                text = last_words(self.store.path / f".slot{slot.number}.log")
                raise StartError(text or f"a worker ended at once: {' '.join(self.options.worker)}")
            elif slot.running:
                self._end(slot, errors.PREEMPTED)
        elif "ready" in message:
            worker.ready = True
            if slot.running:
                slot.running.since = time.monotonic()  # the start of the worker is not the run's
        elif slot.running and "facts" in message:
            slot.running.record |= message["facts"]
            self.store.write(slot.running.record)
        elif slot.running:
            slot.running.record["compile_seconds"] += message["compile_seconds"]
            self._end(slot, message["code"])
            goes_on = message["code"] in (errors.DONE, errors.NON_FINITE) and not self.stopping
            if self.options.isolate or not goes_on:
                worker.retire(self.options.grace)

    def _end(self, slot: Slot, code: int) -> None:
        """Write down how a try ended, and give its cell back."""
        stopping = self.stopping or self.signals.received
        run, slot.running = slot.running, None
        assert run is not None
        record, workdir = run.record, self.store.run(run.cell.id)
        found = records.of_metrics(workdir, record) if "flops_per_step" in record else {}
        outcome = judge(
            code,
            failures=record["attempts"],
            retries=self.options.retries,
            measured=found,
            metric=self.options.metric,
            advanced=int(_status(workdir, "step")) > run.step,
            words=last_words(workdir / "log.0.txt"),
        )
        if run.late and outcome.status != "done":
            outcome = Outcome("failed", f"over its time limit of {self.options.time_limit:g} min")
        elif stopping and outcome.status not in ("done", "diverged"):
            outcome = Outcome("preempted", "the queue was stopped", final=False, counts=False)
        record |= found if outcome.final else {}
        record |= {"status": outcome.status, "reason": outcome.reason, "final": outcome.final}
        record["exit_code"] = code
        record["attempts" if outcome.counts else "interruptions"] += 1
        record["seconds"] += time.monotonic() - run.since
        record["finished"] = time.time()
        self.store.write(record)
        run.claim.release()
        self.report(record)
        if outcome.final:
            self._count(record)
        else:
            self.waiting.appendleft(run.cell)

    def _count(self, record: Record) -> None:
        self.failed |= record["status"] == "failed"

    def _stop(self) -> None:
        """End all workers: idle ones at once, busy ones once they have saved."""
        self.stopping = True
        for slot in self.slots:
            if slot.running and not slot.worker:  # it could not start
                self._end(slot, errors.PREEMPTED)
            elif slot.worker and slot.running:
                slot.worker.stop(self.options.grace)
            elif slot.worker and not slot.worker.retired:
                slot.worker.retire(self.options.grace)
        while any(slot.worker for slot in self.slots):
            self._wait()


def _status(workdir: Path, name: str) -> float:
    """A number of a run's status.json; 0 where there is none."""
    path = workdir / "status.json"
    found = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return float(found[name]) if name in found else 0.0
