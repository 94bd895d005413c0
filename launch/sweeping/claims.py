"""Who works on a cell: one queue at a time, and nobody once that queue is dead.

A lock of the operating system goes with the process that holds it, however it ends, so a cell of
a killed queue is free at once. On a file system without locks a file with a heartbeat stands in: it
is taken over when it has not been touched for `STALE` seconds.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

STALE = 300.0  # seconds without a heartbeat
_HELD = (errno.EACCES, errno.EAGAIN)


class Claim:
    """The right to run one cell. Keep it alive with `beat`, give it back with `release`."""

    def __init__(self, path: Path, descriptor: int | None) -> None:
        """descriptor: of the locked file; None where there are no locks."""
        self.path, self._descriptor = path, descriptor

    def beat(self) -> None:
        """Say that the holder is alive."""
        with contextlib.suppress(OSError):
            os.utime(self.path)

    def release(self) -> None:
        if self._descriptor is None:
            self.path.unlink(missing_ok=True)
        else:
            os.close(self._descriptor)


def claim(path: Path) -> Claim | None:
    """Take the file's lock, made where it is missing; None while another holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        return None if error.errno in _HELD else _claim_by_heartbeat(path.with_suffix(".held"))
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, _holder().encode(), 0)
    return Claim(path, descriptor)


def _claim_by_heartbeat(path: Path) -> Claim | None:
    """Make a file that nobody else has made; an old one is moved away first, by one process."""
    with contextlib.suppress(FileNotFoundError):
        if _age(path) > STALE:
            moved = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}")
            path.rename(moved)
            if _age(moved) <= STALE:  # another queue was faster, and this is its file
                with contextlib.suppress(FileExistsError):
                    os.link(moved, path)
            moved.unlink()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return None
    os.write(descriptor, _holder().encode())
    os.close(descriptor)
    return Claim(path, None)


def _age(path: Path) -> float:
    return time.time() - path.stat().st_mtime


def _holder() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}\n"


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock of this file, which it may not have made."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return True
    finally:
        os.close(descriptor)
    held = path.with_suffix(".held")
    return held.exists() and _age(held) <= STALE


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for a short lock, such as that of a file which several queues write."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    with contextlib.suppress(OSError):  # none here: the last writer wins
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)
