"""The queue's side of a worker: its process, what it says, and the devices that it may see."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WORKER = (sys.executable, "-m", "launch.sweeping.worker")
# Limits what JAX sees to a slot's devices, and what names them all: GPUs, TPU chips.
VARIABLES = {"nvidia": "CUDA_VISIBLE_DEVICES", "accel": "TPU_VISIBLE_CHIPS"}


class Worker:
    """A process that carries out orders.

    events: where (worker, message) go; the message None says that the process has ended.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        events: queue.SimpleQueue[tuple[Worker, dict[str, Any] | None]],
    ) -> None:
        self.ready = self.retired = False
        self.kill_at: float | None = None  # by the monotonic clock
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                command,
                env=dict(environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                # Ctrl-C reaches the queue alone, which passes it on; and all of it can be killed.
                start_new_session=True,
            )
        threading.Thread(target=self._listen, args=(events,), daemon=True).start()

    def _listen(self, events: queue.SimpleQueue[tuple[Worker, dict[str, Any] | None]]) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                with contextlib.suppress(ValueError):  # cut short by a kill
                    events.put((self, json.loads(line)))
        self.process.wait()
        events.put((self, None))

    def order(self, workdir: Path, config: str) -> None:
        """Start a run. A worker that has died meanwhile says so by its last event."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            line = json.dumps({"workdir": str(workdir), "config": config})
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()

    def retire(self, grace: float) -> None:
        """Let it end when its run has."""
        self.retired = True
        self.kill_at = self.kill_at or time.monotonic() + grace
        self.close()

    def stop(self, grace: float) -> None:
        """Ask the run to save and end, and kill it when it has not after `grace` seconds."""
        self.kill_at = self.kill_at or time.monotonic() + grace
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        """End its input."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def kill_if_late(self) -> None:
        late = self.kill_at is not None and time.monotonic() > self.kill_at
        if late and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)


def environments(
    slots: int, per_run: int, simulate: int, dev: Path = Path("/dev")
) -> list[dict[str, str]]:
    """The environment of each slot's processes.

    Args:
      slots: 0: as many as there are accelerators for, one where there are none.
      per_run: accelerators of a slot; 0: one, if there are any.
      simulate: CPU devices in place of real ones, which every slot has.
      dev: where device files lie.
    Raises:
      ValueError: more accelerators are wanted than there are.
    """
    base = dict(os.environ)
    for flag, value in (("slots", slots), ("devices-per-run", per_run)):
        if value < 0:
            raise ValueError(f"--{flag}={value}: must not be negative; nearest: 0")
    on_cpu = simulate or base.get("JAX_PLATFORMS", "") == "cpu"
    kind, found = ("", []) if on_cpu else accelerators(base, dev)
    if not found:
        if per_run:
            raise ValueError(
                f"--devices-per-run={per_run}: there are no accelerators here, and every run sees "
                "all CPU devices; nearest: leave it out (--simulate=N gives each run N of them)"
            )
        return [dict(base) for _ in range(slots or 1)]
    per_run = per_run or 1
    slots = slots or len(found) // per_run
    if not slots or slots * per_run > len(found):
        raise ValueError(
            f"--slots={slots or 1} of --devices-per-run={per_run} need {(slots or 1) * per_run} "
            f"accelerators; {len(found)} are here; nearest: --slots={len(found) // per_run}"
        )
    shares = [found[i * per_run : (i + 1) * per_run] for i in range(slots)]
    return [base | _share(kind, share) for share in shares]


def sharing(environment: Mapping[str, str], cache: Path) -> dict[str, str]:
    """An environment whose processes share what they compile, unless they do that elsewhere.

    Cells that differ in a rate alone have two of their three programs in common. A directory per
    machine, because a program for another processor may not run here.
    """
    if "JAX_COMPILATION_CACHE_DIR" in environment:
        return dict(environment)
    return {
        **environment,
        "JAX_COMPILATION_CACHE_DIR": str(cache / socket.gethostname()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }


def accelerators(environ: Mapping[str, str], dev: Path) -> tuple[str, list[str]]:
    """Their kind, "nvidia" or "accel", and the names of those that this process may use."""
    pattern = re.compile(r"(nvidia|accel)(\d+)")
    files = [match for p in dev.iterdir() if (match := pattern.fullmatch(p.name))]
    kind = min((match[1] for match in files), default="")
    names = sorted((match[2] for match in files if match[1] == kind), key=int)
    if kind and VARIABLES[kind] in environ:
        names = [name for name in environ[VARIABLES[kind]].split(",") if name]
    return kind, names


def _share(kind: str, names: Sequence[str]) -> dict[str, str]:
    found = {VARIABLES[kind]: ",".join(names)}
    if kind == "accel":  # else each process waits for those of the other chips
        bounds = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}
        found |= {"TPU_PROCESS_BOUNDS": "1,1,1"}
        if len(names) in bounds:
            found |= {"TPU_CHIPS_PER_PROCESS_BOUNDS": bounds[len(names)]}
    return found
