"""A trace of some steps, for TensorBoard, XProf or Perfetto, and who holds the memory after them.

    profiler = Profiler("steps 10-15", work.profile, total=1000)
    for step in ...:
        with profiler.step(step):
            state, metrics = train_step(state, batch)
    profiler.close()

leaves profile/plugins/profile/<time>/*.xplane.pb and profile/memory.<process>.prof (for pprof).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import jax

_SPEC = re.compile(r"(?:steps?\s+)?(\d+)(?:\s*-\s*(\d+))?")


def parse(spec: str) -> tuple[int, int]:
    """First and last step of "steps 10-15", "10-15" or "step 10".

    Raises ValueError for anything else.
    """
    match = _SPEC.fullmatch(spec.strip())
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last:
        low, high = sorted((max(first, 1), max(last, 1)))
        near = f"steps {low}-{high}" if match else "steps 10-15"
        raise ValueError(
            f"--profile={spec!r}: must name steps from 1 on, in order; nearest: {near!r}"
        )
    return first, last


class Profiler:
    """Traces the steps that `spec` names; with spec None it does nothing.

    Args:
      spec: see `parse`.
      directory: where the trace goes; made when it starts.
      start: the step that the run goes on from.
      total: the last step of the run.
    Raises:
      ValueError: a bad spec, or steps that this run will not take.
    """

    def __init__(
        self, spec: str | None, directory: str | Path, start: int = 0, total: int | None = None
    ) -> None:
        self._directory = Path(directory)
        self._first, self._last = (0, -1) if spec is None else parse(spec)
        self._tracing = False
        if spec is not None and (self._first <= start or (total or self._last) < self._last):
            raise ValueError(
                f"--profile={spec!r}: this run takes the steps {start + 1} to {total or '...'}"
            )

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Run step number `step` in this; the first of the traced starts, the last ends it."""
        if not self._first <= step <= self._last:
            yield
            return
        if not self._tracing:
            jax.block_until_ready(jax.live_arrays())  # steps before it are still under way
            self._directory.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(self._directory)
            self._tracing = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield
        if step == self._last:
            self.close()

    def close(self) -> None:
        """End a trace that is under way and write it."""
        if self._tracing:
            self._tracing = False
            jax.block_until_ready(jax.live_arrays())
            jax.profiler.stop_trace()
            memory = self._directory / f"memory.{jax.process_index()}.prof"
            jax.profiler.save_device_memory_profile(memory)
