"""A signal ends the run after its step; a step that hangs ends the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from launch.run.errors import LOST_PEER
from launch.run.signals import Signals, Watchdog

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_is_noted_and_the_step_finished(name: str, capfd: pytest.CaptureFixture) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with Signals() as signals:
        assert not signals.stop_at(1)
        os.kill(os.getpid(), signal.Signals[name])
        assert signals.stop_at(2) and signals.received == name
        os.kill(os.getpid(), signal.SIGTERM)  # again, as during a save
        assert signals.stop_at(3) and signals.received == name
    assert f"{name}: stopping after this step" in capfd.readouterr().err
    assert {number: signal.getsignal(number) for number in before} == before


def test_the_third_interrupt_is_for_the_impatient(capfd: pytest.CaptureFixture) -> None:
    with Signals() as signals:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        assert signals.stop_at(1)
        assert "once more to stop at once" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_other_threads_leave_the_handlers_alone() -> None:
    before, found = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with Signals() as signals:
            found.append(signals.stop_at(1))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False] and signal.getsignal(signal.SIGTERM) is before


def run(code: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def test_a_hanging_step_ends_with_its_stack() -> None:
    done = run(
        "import time\n"
        "from launch.run.signals import Watchdog\n"
        "def stuck_collective(): time.sleep(60)\n"
        "with Watchdog(0.3, on_hang=lambda line: print('noted', line, flush=True)) as watchdog:\n"
        "    watchdog.beat()\n"
        "    stuck_collective()\n"
    )
    assert done.returncode == LOST_PEER
    assert "in stuck_collective" in done.stderr
    assert "error: no step was done for 0.3 s: stopping" in done.stderr
    assert done.stdout == "noted no step was done for 0.3 s: stopping (stacks above)\n"


def test_the_watchdog_lets_live_runs_live(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watchdog = Watchdog(10)  # not entered: no thread that could end the tests

    def hangs_after(seconds: float) -> bool:
        now[0] += seconds
        return watchdog._hangs()

    assert not hangs_after(100)  # not armed before the first beat
    watchdog.beat()
    assert not hangs_after(9)
    watchdog.beat()
    assert not hangs_after(9)
    with watchdog.paused():
        assert not hangs_after(100)
    assert not hangs_after(9)
    assert hangs_after(2)


def test_the_watchdog_can_be_off() -> None:
    with Watchdog(0) as watchdog:
        watchdog.beat()
        assert not any(thread.name == "watchdog" for thread in threading.enumerate())
    with pytest.raises(ValueError, match="seconds=-1"):
        Watchdog(-1)
