"""The worker's end: no run outlives the queue that ordered it."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from launch.sweeping import worker


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the worker would do to its own process."""
    found: list[Any] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: found.append((pid, number)))
    monkeypatch.setattr(os, "_exit", found.append)
    return found


def wait_for(condition: Any) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_run_whose_queue_is_gone_is_told_to_save_and_then_ended(ends: list[Any]) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading) as stream:
        orders = iter(worker.Orders(stream, grace=0.1))
        os.write(writing, b'{"workdir": "x"}\n')
        assert next(orders) == {"workdir": "x"}
        time.sleep(0.3)
        assert ends == []  # as long as the queue is there
        os.close(writing)
        wait_for(lambda: len(ends) == 2)
        assert ends == [(os.getpid(), signal.SIGTERM), 75]
        assert list(orders) == []


def test_an_idle_worker_just_ends(ends: list[Any]) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading) as stream:
        orders = worker.Orders(stream, grace=0.0)
        os.write(writing, b"{}\n{}\n")
        threading.Timer(0.2, os.close, [writing]).start()
        assert list(orders) == [{}, {}]
    time.sleep(0.1)
    assert ends == []


def test_what_goes_wrong_in_a_run_is_in_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    said: list[dict[str, Any]] = []

    class Channel:
        def write(self, text: str) -> None:
            said.append(json.loads(text))

    def run(train: Any) -> int:
        monkeypatch.setattr(worker, "train", train)
        return worker.run({"workdir": str(tmp_path)}, Channel(), worker.Clock())  # type: ignore[arg-type]

    def refuse(*_: Any) -> int:
        print("error: too wide", file=sys.stderr)
        raise SystemExit(2)

    def crash(*_: Any) -> int:
        os.system("echo from a library")
        raise RuntimeError("out of memory")

    with capfd.disabled():  # what is printed has to reach the descriptors
        assert (run(refuse), run(crash), run(lambda *_: 3)) == (2, 1, 3)
    assert [message["code"] for message in said] == [2, 1, 3]
    log = (tmp_path / "log.0.txt").read_text()
    assert "error: too wide\n" in log and "from a library\n" in log
    assert log.endswith("RuntimeError: out of memory\n")
