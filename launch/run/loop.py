"""The loop of a run: step, log, evaluate, save; steps are counted from 1."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import jax

from launch.data.loader import Loader
from launch.run import errors
from launch.run.build import Run
from launch.run.checkpoint import Checkpoints
from launch.run.evaluation import Evaluation
from launch.run.faults import Faults
from launch.run.meter import Meter
from launch.run.metrics import Progress, Writer
from launch.run.profile import Profiler
from launch.run.signals import Signals, Watchdog
from launch.run.step import to_mesh, train_step
from launch.run.workdir import WorkDir

HIGHER_IS_BETTER = ("accuracy", "top5_accuracy")


@dataclasses.dataclass
class Loop:
    """Everything that one run holds while it runs."""

    run: Run
    work: WorkDir
    checkpoints: Checkpoints
    loaders: dict[str, Loader]  # by split
    writer: Writer
    progress: Progress
    meter: Meter
    profiler: Profiler
    metadata: dict[str, Any]  # stored with every checkpoint

    def __post_init__(self) -> None:
        self.evaluation = Evaluation(self.run)
        self.best, self.waited = math.inf, 0

    def train(
        self, state: Any, signals: Signals, faults: Faults, watchdog: Watchdog
    ) -> tuple[Any, int]:
        """Step from where the state is to the end. Returns the last state and an exit code."""
        train, started = self.run.config.train, time.monotonic()
        update = train_step(self.run.rule)
        first = int(state.step)
        batches = self.loaders["train"].iterate(first)
        for step in range(first + 1, train.steps + 1):
            faults.at(step)
            batch = to_mesh(self.run.rule, faults.poison(step, next(batches)))
            with self.profiler.step(step):
                state, metrics = update(state, batch)
                # One step at a time: queued collectives of simulated devices starve each other,
                # and the next batch is made by other threads meanwhile.
                jax.block_until_ready(metrics["loss"])
            if step == first + 1:
                self.meter.start(step)  # it compiled
            last = step == train.steps
            logged = step % train.log_every == 0 or last
            if logged and not self.log(step, metrics):
                return state, errors.NON_FINITE
            self.work.beat(step)
            watchdog.beat()  # from the first step on, which compiles
            if train.eval_every and step % train.eval_every == 0 and not last:
                with self.meter.apart(), watchdog.paused():
                    enough = self.is_enough(self.evaluate(state, "validation"))
                if enough:
                    self.progress.say(f"stopped early: no better {train.early_stop_metric}")
                    break
            late = 0 < train.time_limit <= (time.monotonic() - started) / 60
            stop = signals.stop_at(step) or late
            if stop or (train.checkpoint_every and step % train.checkpoint_every == 0 and not last):
                with self.meter.apart(), watchdog.paused():
                    self.save(state)
            if stop and not last:
                return state, errors.PREEMPTED
        return state, errors.DONE

    def save(self, state: Any) -> None:
        """Start to write a checkpoint of the state, unless its last update was skipped."""
        if int(state.skipped) == 0:
            self.checkpoints.save(int(state.step), state, self.metadata)

    def log(self, step: int, metrics: dict[str, jax.Array]) -> bool:
        """Write a line of training metrics; False when too many updates were skipped in a row."""
        values = {name: float(value) for name, value in metrics.items()}
        values["learning_rate"] = float(self.run.rate(step - 1))
        values = self.evaluation.with_bits(values) | self.meter.measure(step)
        self.writer.write(step, "train", values)
        self.progress.update(step, values)
        skipped, limit = int(values["skipped"]), self.run.config.rule.max_skipped
        if skipped < limit:
            return True
        self.progress.say(
            f"error: step {step}: loss or gradient was not finite in {skipped} updates in a row "
            f"(rule.max_skipped={limit}); the newest checkpoint is "
            f"{self.checkpoints.latest_step()}; try a lower optimizer.learning_rate"
        )
        return False

    def evaluate(self, state: Any, split: str) -> dict[str, float]:
        """Means over a split, each example once; written, shown and returned."""
        values = self.evaluation.means(state, self.loaders[split])
        step = int(state.step)
        self.writer.write(step, split, values)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        self.progress.say(f"step {step}  {split}:  {shown}")
        return values

    def is_enough(self, values: dict[str, float]) -> bool:
        """Early stopping: the metric has not become better for `patience` evaluations."""
        train = self.run.config.train
        if not train.early_stop_metric or not train.early_stop_patience:
            return False
        value = values[train.early_stop_metric]
        value = -value if train.early_stop_metric in HIGHER_IS_BETTER else value
        self.best, self.waited = (value, 0) if value < self.best else (self.best, self.waited + 1)
        return self.waited >= train.early_stop_patience
