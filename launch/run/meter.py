"""How fast the steps go, and what of the hardware they use.

Use:

    meter = Meter(tokens=batch * length, flops=flops_of_a_step, peak=hardware.peak_flops(dtype))
    meter.start(step)              # after the first step, which compiles
    with meter.apart():            # what is no step
        evaluate()
    values = meter.measure(step)   # {"step_time", "tokens_per_second", "mfu", "memory_bytes"}
"""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterator

import jax


class Meter:
    """Speed between two measurements.

    Args:
      examples, tokens: per step, over all devices; 0: not reported.
      flops: of one step, over all devices; 0: no MFU.
      peak: FLOP/s of all devices; None: unknown, no MFU.
      clock: seconds.
    """

    def __init__(
        self,
        examples: int = 0,
        tokens: int = 0,
        flops: float = 0.0,
        peak: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._per_step = {"examples_per_second": examples, "tokens_per_second": tokens}
        self.flops, self._peak, self._clock = flops, peak, clock
        self._step: int | None = None
        self._since = 0.0
        self._apart = 0.0

    def start(self, step: int) -> None:
        """Count from here: `step` is done, and what it took (a compilation) does not count."""
        self._step, self._since, self._apart = step, self._clock(), 0.0

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """`with meter.apart(): evaluate()`: time that is not the steps'."""
        start = self._clock()
        try:
            yield
        finally:
            self._apart += self._clock() - start

    def measure(self, step: int) -> dict[str, float]:
        """step_time (seconds), rates, mfu and memory_bytes since the last call; count from here.

        The results of `step` must be on the host, or the clock stops too early. Empty at the
        first call without a `start`.
        """
        before, elapsed = self._step, self._clock() - self._since - self._apart
        self.start(step)
        if before is None or step <= before or elapsed <= 0:
            return {}
        step_time = elapsed / (step - before)
        values = {"step_time": step_time}
        values |= {name: count / step_time for name, count in self._per_step.items() if count}
        if self.flops and self._peak:
            values["mfu"] = self.flops / step_time / self._peak
        return values | {"memory_bytes": memory_bytes()}


def memory_bytes() -> float:
    """The most that any device of this process has held; on CPU, the process itself."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if s and "peak_bytes_in_use" in s]
    unit = 1 if sys.platform == "darwin" else 1024
    return float(max(peaks, default=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit))
