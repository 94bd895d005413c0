"""Means of an objective over a split, each example once."""

from __future__ import annotations

import math
from typing import Any

import jax

from launch.data.loader import Loader
from launch.run import resolve
from launch.run.build import Run
from launch.run.step import eval_step, to_mesh


class Evaluation:
    """Evaluates states of one run; compiles once."""

    def __init__(self, run: Run) -> None:
        module = resolve.module("data", run.config.data.name)
        self.run = run
        self.step = eval_step(run.rule)
        codes = hasattr(run.rule.task.objective, "CODES") and hasattr(module, "BYTES_PER_TOKEN")
        self.bytes_per_token: float | None = module.BYTES_PER_TOKEN if codes else None

    def means(self, state: Any, loader: Loader) -> dict[str, float]:
        """Each mean of the objective by name; at most `data.eval_batches` batches."""
        totals: dict[str, tuple[float, float]] = {}
        limit = self.run.config.data.eval_batches or math.inf
        for number, rows in enumerate(loader.epoch()):
            if number >= limit:
                break
            sums = jax.device_get(self.step(state, to_mesh(self.run.rule, rows)))
            for name, (total, count) in sums.items():
                old = totals[name] if name in totals else (0.0, 0.0)
                totals[name] = (old[0] + float(total), old[1] + float(count))
        return self.with_bits({n: total / max(count, 1.0) for n, (total, count) in totals.items()})

    def with_bits(self, values: dict[str, float]) -> dict[str, float]:
        """The values, and bits per byte where tokens are text."""
        if self.bytes_per_token is None:
            return values
        return values | {"bits_per_byte": values["loss"] / math.log(2) / self.bytes_per_token}
