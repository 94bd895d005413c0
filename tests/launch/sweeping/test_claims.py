"""One queue at a time, with locks of the system and without."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.sweeping import claims

HOLD = (
    "import fcntl,sys,time; f=open(sys.argv[1],'w'); fcntl.flock(f,fcntl.LOCK_EX); print(1,flush=1)"
)


def test_a_claim_is_held_until_it_is_given_back(tmp_path: Path) -> None:
    path = tmp_path / ".claim"
    assert not claims.is_held(path)
    first = claims.claim(path)
    assert first is not None and claims.is_held(path)
    assert claims.claim(path) is None
    assert str(os.getpid()) in path.read_text()
    first.release()
    assert not claims.is_held(path)
    second = claims.claim(path)
    assert second is not None
    second.release()


def test_a_claim_dies_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / ".claim"
    command = [sys.executable, "-c", f"{HOLD}; time.sleep(60)", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert claims.claim(path) is None and claims.is_held(path)
        process.send_signal(signal.SIGKILL)
        process.wait()
    claim = claims.claim(path)
    assert claim is not None
    claim.release()


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.usefixtures("no_locks")
def test_without_locks_a_heartbeat_holds_a_claim_and_a_stale_one_is_taken(tmp_path: Path) -> None:
    path = tmp_path / ".claim"
    first = claims.claim(path)
    assert first is not None and claims.is_held(path)
    assert claims.claim(path) is None
    old = time.time() - claims.STALE - 1
    os.utime(first.path, (old, old))
    assert not claims.is_held(path)
    first.beat()
    assert claims.claim(path) is None, "a heartbeat was not seen"
    os.utime(first.path, (old, old))
    second = claims.claim(path)
    assert second is not None
    assert claims.claim(path) is None
    second.release()
    assert not claims.is_held(path)
    assert [p.name for p in tmp_path.iterdir()] == [".claim"]
