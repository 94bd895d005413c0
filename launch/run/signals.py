"""Ends that come from outside: a signal that asks the run to stop, and a step that hangs.

Use:

    with Signals() as signals, Watchdog(seconds=600) as watchdog:
        for step in ...:
            watchdog.beat()
            state, metrics = train_step(state, batch)
            if signals.stop_at(step):
                checkpoints.save(step, state, metadata)
                checkpoints.close()
                return errors.PREEMPTED
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from launch.run.errors import LOST_PEER


class Signals:
    """Turns SIGTERM and SIGINT into a wish that the loop asks for after each step.

    A handler only notes the signal, so neither a second one nor one during a save can break or
    block anything; the third SIGINT raises KeyboardInterrupt, for an impatient person. With
    several processes JAX's preemption service listens to SIGTERM instead, since all must stop at
    the same step. Handlers that were there before come back at the end.
    """

    def __init__(self) -> None:
        self.received: str | None = None  # the name of the first signal
        self._interrupts = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        # Only the main thread may set handlers; elsewhere the owner of the thread decides.
        if threading.current_thread() is threading.main_thread():
            wanted = [signal.SIGINT] if _service() else [signal.SIGINT, signal.SIGTERM]
            for number in wanted:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def stop_at(self, step: int) -> bool:
        """True when the run should save after `step` and exit; the same step in every process."""
        if _service():
            if multihost_utils.reached_preemption_sync_point(step):
                self.received = self.received or "SIGTERM"
                return True
            return False
        return self.received is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        self._interrupts += number == signal.SIGINT
        if self._interrupts == 3:
            raise KeyboardInterrupt
        if self.received is None and _service():
            os.kill(os.getpid(), signal.SIGTERM)  # tells the other processes
        if self.received is None:
            text = f"\n{name}: stopping after this step, once the state is saved"
        elif number == signal.SIGINT:
            text = "\nSIGINT again: once more to stop at once, without saving"
        else:
            return
        self.received = self.received or name
        os.write(2, f"{text}\n".encode())  # print may not be entered twice


def _service() -> bool:
    """Whether JAX's preemption service decides when all processes stop."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


class Watchdog:
    """Ends the process when no `beat` comes for `seconds`; 0: never.

    A step that hangs, such as a collective whose peer is alive but stuck, would otherwise wait
    for ever without a word. All stacks go to standard error first.

    Args:
      seconds: longer than any step, evaluation or save between two beats.
      on_hang: called with a line that says what happened, before the end.
      exit_code: of the process.
    """

    def __init__(
        self,
        seconds: float,
        on_hang: Callable[[str], None] | None = None,
        exit_code: int = LOST_PEER,
    ) -> None:
        if seconds < 0:
            raise ValueError(f"seconds={seconds}: must be 0 (off) or more; nearest: 0")
        self._seconds, self._on_hang, self._exit_code = seconds, on_hang, exit_code
        self._last: float | None = None  # None: not armed
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")

    def __enter__(self) -> Watchdog:
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def beat(self) -> None:
        """A step begins: the time counts anew. The first beat arms the watchdog."""
        self._last = time.monotonic()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """`with watchdog.paused(): compile()`: what may take as long as it likes."""
        self._last = None
        try:
            yield
        finally:
            self.beat()

    def _hangs(self) -> bool:
        last = self._last
        return last is not None and time.monotonic() - last > self._seconds

    def _watch(self) -> None:
        while not self._ended.wait(min(self._seconds / 4, 5.0)):
            if self._hangs():
                line = f"no step was done for {self._seconds:g} s: stopping (stacks above)"
                faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
                os.write(2, f"error: {line}\n".encode())
                with contextlib.suppress(Exception):
                    if self._on_hang is not None:
                        self._on_hang(line)
                os._exit(self._exit_code)  # an orderly exit would wait for what hangs
