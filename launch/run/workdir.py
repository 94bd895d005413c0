"""The directory of a run: what lies where, who may write, and what makes it the same run.

    config.json      the resolved config: going on with another one is refused
    env.json         versions, devices, source revision, flags of the last start
    status.json      {"state", "step", "heartbeat", "reason", "attempts", "pid", "host", "started"}
    metrics.jsonl    see launch/run/metrics.py
    log.<process>.txt  checkpoints/  events/  profile/
    lock             held by the trainer
    run.json         of a run in a sweep: see launch/sweeping/record.py

Use:

    work = WorkDir(path)
    work.check(config_json)          # before anything is compiled; writes nothing
    work.open(config_json, env=environment.describe(argv))
    work.status(state="running", step=0)
    work.beat(step)                  # every step; writes now and then
    work.close(state="done")
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
STATES = ("running", "done", "preempted", "failed")

# What a run may change when it goes on: how long, how often, on which devices, what it reports.
MAY_CHANGE = re.compile(
    r"(train|mesh|metrics|sample)\..*|data\.(dir|prefetch|eval_batches|eval_batch_size)"
)

_OWN = re.compile(
    r"(config|env|status|run)\.json|metrics\.jsonl|.*\.txt|lock|checkpoints|events|profile|\..*|.*\.tmp"
)
_HEARTBEAT = 10.0  # seconds between two writes of `beat`


def check_name(name: str) -> str:
    """`name` when it is fit for a directory of a run.

    Raises ValueError for anything but 1 to 64 of A-Z a-z 0-9 . _ - (so no "../x", no spaces).
    """
    if not NAME.fullmatch(name) or name in (".", ".."):
        near = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._")[:64] or "run"
        raise ValueError(
            f"run name {name!r}: must be 1 to 64 of A-Z a-z 0-9 '.' '_' '-'; nearest: {near!r}"
        )
    return name


class WorkDir:
    """The work directory of one trainer.

    Args:
      path: its last part is the run's name.
      process_index: only process 0 writes.
    Raises:
      ValueError: a name that `check_name` refuses.
    """

    def __init__(self, path: str | Path, process_index: int = 0) -> None:
        self.path = Path(path).expanduser().absolute()
        check_name(self.path.name)
        self._writes = process_index == 0
        self._lock: int | None = None
        self._status: dict[str, Any] = {}
        self._written = 0.0  # when the status was, by the monotonic clock

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def profile(self) -> Path:
        return self.path / "profile"

    def log(self, process_index: int) -> Path:
        return self.path / f"log.{process_index}.txt"

    def check(self, config_json: str) -> None:
        """Refuse what `open` could not use or must not touch; writes nothing.

        Raises:
          NotADirectoryError, PermissionError: a file in the way, or a place that is read-only.
          FileExistsError: a directory of something else.
          ValueError: another trainer is at work here, or it is a run of another config.
        """
        self._check_place()
        if not self.path.is_dir():
            return
        self._check_lock()
        if (self.path / "config.json").exists():
            self._check_config(config_json)
        elif others := sorted(p.name for p in self.path.iterdir() if not _OWN.fullmatch(p.name)):
            raise FileExistsError(
                f"{self.path} is no work directory (it holds {others[0]}): name one of a run, "
                "or one that is not there yet"
            )

    def open(self, config_json: str, env: Mapping[str, Any]) -> None:
        """Make the directory, take its lock, write config.json, env.json and status.json.

        Raises what `check` raises.
        """
        self.check(config_json)
        if not self._writes:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        old = _read_json(self.path / "status.json")
        attempts = int(old["attempts"]) + 1 if "attempts" in old else 1
        write_atomically(self.path / "config.json", config_json)
        write_atomically(self.path / "env.json", _to_json(env))
        self._status = {"attempts": attempts, "started": time.time(), "reason": ""}
        self._status |= {"pid": os.getpid(), "host": socket.gethostname(), "step": 0}
        self.status(state="running")

    def status(self, **changes: Any) -> None:
        """Change entries of status.json: state (one of STATES), step, reason, or others."""
        if "state" in changes and changes["state"] not in STATES:
            raise ValueError(f"state {changes['state']!r}: choose from {', '.join(STATES)}")
        self._status |= {**changes, "heartbeat": time.time()}
        self._written = time.monotonic()
        if self._writes and self._lock is not None:
            write_atomically(self.path / "status.json", _to_json(self._status))

    def beat(self, step: int) -> None:
        """Say that `step` is done: cheap, writes status.json every ten seconds."""
        self._status["step"] = step
        if time.monotonic() - self._written >= _HEARTBEAT:
            self.status()

    def close(self, state: str = "done", reason: str = "") -> None:
        """Write the end of the run and give the lock back; a second call does nothing."""
        if self._lock is not None:
            self.status(state=state, reason=reason)
            os.close(self._lock)
            self._lock = None

    def _check_place(self) -> None:
        place = next(p for p in (self.path, *self.path.parents) if p.exists() or p.is_symlink())
        if not place.is_dir():
            raise NotADirectoryError(f"--workdir={self.path}: {place} is a file; name a directory")
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(
                f"--workdir={self.path}: {place} cannot be written to; name another directory"
            )

    def _check_config(self, config_json: str) -> None:
        checkpoints = self.checkpoints
        if not checkpoints.is_dir() or not any(p.name.isdecimal() for p in checkpoints.iterdir()):
            return  # nothing was saved that another config could go on from
        old, new = _flat(_read_json(self.path / "config.json")), _flat(json.loads(config_json))
        absent = dict.fromkeys([*old, *new], "absent")
        old, new = absent | old, absent | new
        changes = [
            f"{key} was {old[key]}, is {new[key]}"
            for key in sorted(absent)
            if old[key] != new[key] and not MAY_CHANGE.fullmatch(key)
        ]
        if changes:
            raise ValueError(
                f"{self.path} is a run of another config: {'; '.join(changes)}: "
                "give the old values back, or name a new --workdir"
            )

    def _check_lock(self) -> None:
        if self._writes and self._lock is None and (self.path / "lock").exists():
            os.close(self._locked(os.open(self.path / "lock", os.O_RDONLY)))

    def _take_lock(self) -> None:
        self._lock = self._locked(os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644))
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def _locked(self, descriptor: int) -> int:
        """`descriptor` once its file is locked; the lock goes with the process, killed or not."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return descriptor  # a file system without locks
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise ValueError(
                f"{self.path} is in use by {holder or 'another process'}: wait for it or end it, "
                "or name another --workdir"
            ) from None
        return descriptor


def write_atomically(path: Path, text: str) -> None:
    """Write a file that a reader sees whole: the old one or the new one."""
    new = path.with_name(f"{path.name}.tmp")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def _to_json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    return found if isinstance(found, dict) else {}


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted key to JSON text of the value."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value)
    return flat
