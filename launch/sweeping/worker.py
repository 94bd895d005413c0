"""The process that trains cells, one after another: it imports and starts devices once.

    python -m launch.sweeping.worker [--simulate=N]

It takes an order per line of standard input, {"workdir", "config"}, both text, and answers on
standard output: {"ready"} once it has its devices, then per order {"facts"} when the model is built
and {"code", "seconds", "compile_seconds"} at the end. What the run itself prints goes to
`log.0.txt` of its directory. SIGTERM makes the run save and end with code 75, and the worker with
it. At the end of its input it does the same by itself: no run outlives the queue that ordered it.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import jax

from launch.cluster import distributed
from launch.run import config as configs
from launch.run import errors, session
from launch.run.build import build
from launch.sweeping import record

GRACE = 60.0  # seconds that a run without a queue has to save and stop
KEEPS_WORKER = (errors.DONE, errors.NON_FINITE)  # ends after which the process is as it was
_COMPILES = "/jax/core/compile/backend_compile_duration"  # as JAX reports it


class Orders:
    """The lines of standard input, read by a thread that also sees its end."""

    def __init__(self, stream: TextIO, grace: float = GRACE) -> None:
        self.busy = False
        self._grace = grace
        self._lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(stream,), daemon=True, name="orders").start()

    def _read(self, stream: TextIO) -> None:
        for line in stream:
            self._lines.put(json.loads(line))
        self._lines.put(None)
        if self.busy:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(self._grace)
            os._exit(errors.PREEMPTED)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while (order := self._lines.get()) is not None:
            self.busy = True
            yield order
            self.busy = False


class Clock:
    """Seconds in the compiler since the last `reset`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._add)

    def _add(self, event: str, duration_secs: float, **_: Any) -> None:
        self.seconds += duration_secs if event == _COMPILES else 0.0

    def reset(self) -> None:
        self.seconds = 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulate", type=int, default=0)
    options = parser.parse_args()
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm's, for the queue that this belongs to
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    with errors.guard_input():
        if options.simulate:
            distributed.simulate(options.simulate)
        distributed.check_devices(options.simulate)
    say(channel, ready=True)
    clock = Clock()
    for order in Orders(sys.stdin):
        code = run(order, channel, clock)
        if code not in KEEPS_WORKER:
            return code
    return errors.DONE


def say(channel: TextIO, **message: Any) -> None:
    with contextlib.suppress(BrokenPipeError):  # the queue is gone, and this process soon is
        channel.write(json.dumps(message) + "\n")


def run(order: dict[str, str], channel: TextIO, clock: Clock) -> int:
    """Carry out one order. Returns the exit code that `launch.train` would have."""
    start = time.perf_counter()
    clock.reset()
    with _output(Path(order["workdir"]) / "log.0.txt"):
        try:
            code = train(order, channel)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except Exception:
            traceback.print_exc()
            code = 1
    gc.collect()  # the arrays of the run, which reference cycles would hold on a device
    taken = time.perf_counter() - start
    say(channel, code=code, seconds=taken, compile_seconds=clock.seconds)
    return code


def train(order: dict[str, str], channel: TextIO) -> int:
    with errors.guard_input():
        run = build(configs.from_json(order["config"]))
        loop = session.open_run(run, order["workdir"], None)
    say(channel, facts=record.of_run(run, loop.meter.flops))
    return session.train(loop)


@contextlib.contextmanager
def _output(path: Path) -> Iterator[None]:
    """Everything that is printed, by libraries too, is added to a file."""
    sys.stdout.flush()
    before = [os.dup(1), os.dup(2)]
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    os.close(file)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for descriptor, old in zip((1, 2), before, strict=True):
            os.dup2(old, descriptor)
            os.close(old)


if __name__ == "__main__":
    raise SystemExit(main())
