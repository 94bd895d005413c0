"""Where the numbers of a run go: metrics.jsonl, TensorBoard, Weights & Biases, a live line.

Use:

    writer = Writer(workdir, tensorboard=True)
    writer.truncate(step)  # when a run goes on from `step`
    progress = Progress(total=steps, every=log_every)
    for step in ...:
        values = {"loss": ..., "learning_rate": ..., **meter.measure(step)}
        writer.write(step, "train", values)
        progress.update(step, values)
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

SPLITS = ("train", "validation", "test")
RESERVED = ("step", "time", "split")
FILE = "metrics.jsonl"


class Sink(Protocol):
    """One place that numbers go to."""

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


class Writer:
    """Writes metrics to every sink; only process 0 writes anything.

    Args:
      workdir: metrics.jsonl and events/ lie in it; it must be there.
      tensorboard: write TensorBoard event files too.
      wandb: report to this project of Weights & Biases; None: do not.
      config: what Weights & Biases shows as the run's config.
      process_index: of this process.
    Raises:
      ValueError: wandb is asked for and not installed.
    """

    def __init__(
        self,
        workdir: str | Path,
        tensorboard: bool = True,
        wandb: str | None = None,
        config: Mapping[str, Any] | None = None,
        process_index: int = 0,
    ) -> None:
        self._workdir = Path(workdir)
        self._sinks: list[Sink] = []
        self._lines: Lines | None = None
        if process_index:
            return
        self._lines = Lines(self._workdir / FILE)
        self._sinks = [self._lines]
        if tensorboard:
            self._sinks.append(Events(self._workdir / "events"))
        if wandb is not None:
            self._sinks.append(_wandb(wandb, self._workdir, config or {}))

    def truncate(self, step: int) -> None:
        """Forget what was written after `step`, and a last line that was cut short."""
        for sink in self._sinks:
            if isinstance(sink, Lines | Events):
                sink.truncate(step)

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Write numbers (anything `float` takes) under plain names, such as {"loss": 2.3}.

        Raises ValueError for another split than train, validation, test, or a reserved name.
        """
        if split not in SPLITS:
            raise ValueError(f"split {split!r}: choose from {', '.join(SPLITS)}")
        if taken := [name for name in values if name in RESERVED]:
            raise ValueError(f"a metric cannot be called {taken[0]!r}: each line has one already")
        numbers = {name: float(value) for name, value in values.items()}
        for sink in self._sinks:
            sink.write(int(step), split, numbers)

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()


class Lines:
    """metrics.jsonl: an object per line with step, time (Unix seconds), split, then the metrics."""

    def __init__(self, path: Path) -> None:
        self._path = path
        _mend(path)
        self._file = path.open("a", encoding="utf-8")

    def truncate(self, step: int) -> None:
        self._file.close()
        _mend(self._path, step)
        self._file = self._path.open("a", encoding="utf-8")

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        line = {"step": step, "time": round(time.time(), 3), "split": split}
        numbers = {name: x if math.isfinite(x) else None for name, x in values.items()}
        self._file.write(json.dumps(line | numbers, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, in order; null becomes None; broken lines are left out."""
    lines = []
    for text in Path(path).read_text("utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
            lines.append({"step": int(line["step"]), **line})
        except (ValueError, KeyError, TypeError):
            continue  # cut short by a kill
    return lines


def _mend(path: Path, last_step: float = math.inf) -> None:
    """Drop broken lines and those after `last_step`; the file changes at once or not at all."""
    if not path.exists():
        return
    kept = [json.dumps(line) + "\n" for line in read(path) if line["step"] <= last_step]
    text = "".join(kept)
    if text != path.read_text("utf-8", errors="replace"):
        new = path.with_name(f"{path.name}.tmp")
        new.write_text(text, "utf-8")
        os.replace(new, path)


class Events:
    """TensorBoard event files, "train/loss" and so on, opened at the first number."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._purge: int | None = None
        self._writer: Any = None

    def truncate(self, step: int) -> None:
        self.close()
        self._purge = step + 1  # TensorBoard hides what earlier files hold from here on

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        if self._writer is None:
            from tensorboardX import SummaryWriter  # takes a second to import

            # Two starts within a second would otherwise write to one file.
            suffix = f".{time.time_ns()}"
            self._writer = SummaryWriter(
                str(self._directory),
                purge_step=self._purge,
                flush_secs=30,
                filename_suffix=suffix,
            )
        for name, value in values.items():
            self._writer.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _wandb(project: str, workdir: Path, config: Mapping[str, Any]) -> Sink:
    try:
        import wandb
    except ImportError as error:
        raise ValueError(
            "metrics.wandb=true needs the package wandb: pip install wandb, or metrics.wandb=false"
        ) from error
    name = workdir.absolute().name
    run = wandb.init(
        project=project, name=name, id=name, dir=str(workdir), config=dict(config), resume="allow"
    )

    class Wandb:
        def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
            run.log({f"{split}/{name}": value for name, value in values.items()}, step=step)

        def close(self) -> None:
            run.finish()

    return Wandb()


class Progress:
    """One line that says how a run does: in place on a terminal, now and then in a pipe.

    Args:
      total: steps of the run.
      every: steps between two lines where the stream is no terminal.
      stream: standard output by default.
      quiet: print nothing, as every process but the first should.
    """

    def __init__(
        self, total: int, every: int = 20, stream: TextIO | None = None, quiet: bool = False
    ) -> None:
        self._total, self._every, self._quiet = total, max(every, 1), quiet
        self._stream = stream or sys.stdout
        self._live = self._stream.isatty()
        self._printed = 0  # the last step that a pipe was told of
        self._shown = False  # a live line is on the screen

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """Show `step` with what `values` has of loss, learning_rate and what a Meter measures."""
        if self._quiet:
            return
        text = line(step, self._total, values)
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            self._put(f"\r\x1b[K{text[:width]}")
            self._shown = True
        elif step >= self._printed + self._every or step >= self._total or not self._printed:
            self._put(f"{text}\n")
            self._printed = step

    def say(self, text: str) -> None:
        """Print a line that stays, such as the result of an evaluation."""
        if not self._quiet:
            self.close()
            self._put(f"{text}\n")

    def close(self) -> None:
        """Leave the live line on the screen and go to the next."""
        if self._shown:
            self._put("\n")
            self._shown = False

    def _put(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def line(step: int, total: int, values: Mapping[str, float]) -> str:
    """`step 120/1000  loss 2.3456  lr 1.00e-03  12.3k tokens/s  81 ms/step  mfu 41.2% ...`."""
    parts = [f"step {step}/{total}"]
    for name, form in _FORMS.items():
        if name in values:
            parts.append(form(float(values[name])))
    if "step_time" in values and step < total:
        parts.append(f"eta {duration((total - step) * values['step_time'])}")
    return "  ".join(parts)


_FORMS: dict[str, Callable[[float], str]] = {
    "loss": lambda x: f"loss {x:.4f}",
    "learning_rate": lambda x: f"lr {x:.2e}",
    "tokens_per_second": lambda x: f"{short(x)} tokens/s",
    "examples_per_second": lambda x: f"{short(x)} examples/s",
    "step_time": lambda x: f"{1000 * x:.3g} ms/step",
    "mfu": lambda x: f"mfu {100 * x:.1f}%",
    "memory_bytes": lambda x: f"mem {x / 2**30:.2f} GiB",
}


def short(x: float) -> str:
    """1234567 -> '1.23M'."""
    for unit in ("", "k", "M", "G"):
        if abs(x) < 1000:
            return f"{x:.3g}{unit}"
        x /= 1000
    return f"{x:.3g}T"


def duration(seconds: float) -> str:
    """4000 -> '1:06:40'; 42 -> '0:42'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
