"""What the end of a try means: the state of the run, why, and whether it is tried again."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.run import errors

TAIL = 4000  # bytes of a log in which its last words are looked for


@dataclasses.dataclass(frozen=True)
class Outcome:
    """status: one of the store's STATES. final: it is not tried again by itself.

    counts: the try counts as an attempt; one that was interrupted does not.
    """

    status: str
    reason: str = ""
    final: bool = True
    counts: bool = True


def judge(
    code: int,
    failures: int,
    retries: int,
    measured: Mapping[str, Any],
    metric: str,
    advanced: bool,
    words: str,
) -> Outcome:
    """The outcome of a try.

    Args:
      code: exit code; negative: of the signal that killed it (launch/run/errors.py).
      failures: tries that failed before, interruptions not among them.
      retries: how many more tries than one a failing run has.
      measured: see `record.of_metrics`; without it a run is not done, whatever its code.
      metric: of the last evaluation, which has to be finite.
      advanced: the run is further than when this try began; an interrupted one that is not, again
        and again, is failing.
      words: the last ones of its log.
    """
    if code == errors.DONE and measured:
        value = measured["val"][metric] if metric in measured["val"] else None
        if value is None:
            return Outcome("diverged", f"validation {metric} is not a finite number")
        return Outcome("done")
    if code == errors.BAD_INPUT:
        return Outcome("failed", words or "refused its config")
    if code == errors.NON_FINITE:
        return Outcome("diverged", words or "loss or gradient stayed non-finite")
    if code == errors.PREEMPTED and advanced:
        return Outcome("preempted", "saved and stopped", final=False, counts=False)
    reason = f"{_describe(code)}: {words}" if words else _describe(code)
    return Outcome("failed", reason, final=failures >= retries)


def _describe(code: int) -> str:
    if code == errors.DONE:
        return "ended without its last evaluation"
    if code == errors.PREEMPTED:
        return "stopped without getting any further"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def last_words(log: Path) -> str:
    """The last line of a log that starts with "error:", or the last of any kind."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    said = [line for line in lines if line.startswith("error:")] or [line for line in lines if line]
    return said[-1].removeprefix("error:").strip()[:500] if said else ""
