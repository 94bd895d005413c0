"""What a worker times: one step of ours or of a peer, and how to wait for it."""

from __future__ import annotations

import dataclasses
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Job:
    """step: starts one step and returns something of its result, perhaps before it is done.

    wait: returns when that is done. loss: the loss of a step, where there is one.
    device: "cpu" or "accelerator". memory: peak bytes on an accelerator, or None.
    flops: of matrix products in one step: "full", and "causal" with half of attention.
    peak: FLOP/s of the device, and peak_note: what that is.
    """

    step: Callable[[], Any]
    wait: Callable[[Any], Any]
    device: str
    versions: Mapping[str, str]
    parameters: int = 0
    loss: Callable[[Any], float] | None = None
    memory: Callable[[], int | None] = lambda: None
    flops: Mapping[str, float] = dataclasses.field(default_factory=dict)
    peak: float | None = None
    peak_note: str = ""


WARM_UP = 2  # steps after the first
SAMPLE = 0.05  # seconds; shorter steps are timed several at a time


def measure(job: Job, steps: int) -> dict[str, Any]:
    """Seconds of the first step, then samples of the time and processor time of one step.

    Raises:
      RuntimeError: the loss did not fall.
    """
    start = time.perf_counter()
    result = job.step()
    job.wait(result)
    first = time.perf_counter() - start
    losses = [job.loss(result)] if job.loss else []
    start = time.perf_counter()
    for _ in range(WARM_UP):
        result = job.step()
    job.wait(result)
    one = (time.perf_counter() - start) / WARM_UP
    together = max(1, round(SAMPLE / max(one, 1e-9)))
    samples, busy = [], []
    for _ in range(steps):
        start, used = time.perf_counter(), time.process_time()
        for _ in range(together):
            result = job.step()
        job.wait(result)
        samples.append(1e3 * (time.perf_counter() - start) / together)
        busy.append(1e3 * (time.process_time() - used) / together)
    if job.loss:
        losses.append(job.loss(result))
        if not losses[-1] < losses[0]:
            raise RuntimeError(f"the loss did not fall: {losses[0]:.4f} to {losses[-1]:.4f}")
    return {
        "first_step_s": first,
        "step_ms": samples,
        "cpu_ms": busy,
        "losses": losses,
        "parameters": job.parameters,
        "device": job.device,
        "memory_mb": (job.memory() or _resident()) / 1e6,
        "versions": dict(job.versions),
        "flops": dict(job.flops),
        "peak": job.peak,
        "peak_note": job.peak_note,
    }


def _resident() -> int:
    """Peak bytes of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
