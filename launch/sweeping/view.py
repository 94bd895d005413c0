"""What a person sees of a sweep: a table of its runs, and lines while it goes on."""

from __future__ import annotations

import collections
import json
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from launch.run import metrics
from launch.sweeping import cells as cell_lists
from launch.sweeping.store import STATES, Record, Store

EVERY = 0.5  # seconds between two drawings
_TAIL = 4096  # bytes of a metrics file that hold its last line


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as text, a column per key, in the order in which keys first occur; numbers short."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = [[_text(row[name]) if name in row else "" for name in names] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(names, *text, strict=True)]
    right = [all(_is_number(row[name]) for row in rows if name in row) for name in names]
    lines = []
    for cells in ([*names], *text):
        padded = (
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(cells, widths, right, strict=True)
        )
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    return "" if value is None else str(value)


def rows(store: Store) -> list[dict[str, Any]]:
    """Every run: number, id, what it sets, state, step, loss, seconds, reason."""
    records = store.records()
    varied = cell_lists.differing([record["overrides"] for record in records])
    found = []
    for number, record in enumerate(records, 1):
        row: dict[str, Any] = {"": number, "id": record["id"]}
        row["cell"] = cell_lists.label(record["overrides"], varied)
        row["state"] = _state(store, record)
        row |= progress(store.run(record["id"]), record)
        row["seconds"] = round(record["seconds"], 1)
        row["reason"] = record["reason"][:100]
        found.append(row)
    return found


def _state(store: Store, record: Record) -> str:
    """As recorded, but a run whose queue is gone is not running."""
    if record["status"] == "running" and not store.is_claimed(record["id"]):
        return "preempted"
    status: str = record["status"]
    return status


def progress(workdir: Path, record: Record) -> dict[str, Any]:
    """step, and loss: of the validation at the end, of the last training step before."""
    if "val" in record:
        return {"step": record["steps"], "loss": record["val"].get("loss")}
    line = _last_line(workdir / metrics.FILE)
    return {"step": line.get("step"), "loss": line.get("loss")}


def _last_line(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        lines = file.read().decode(errors="replace").splitlines()
    for line in reversed(lines):
        try:
            found = json.loads(line)
        except ValueError:
            continue  # being written
        if isinstance(found, dict):
            return found
    return {}


def summary(states: Iterable[str]) -> str:
    """`3 planned, 12 done, 1 failed`."""
    numbers = collections.Counter(states)
    return ", ".join(f"{numbers[state]} {state}" for state in STATES if numbers[state])


class Live:
    """A line for every run that ends; those that go on are drawn below on a terminal, and have a
    line of their own elsewhere."""

    def __init__(
        self, store: Store, cells: Sequence[cell_lists.Cell], stream: TextIO | None = None
    ) -> None:
        self._store, self._stream = store, stream or sys.stdout
        self._live = self._stream.isatty()
        self._drawn, self._at = 0, 0.0  # lines on the screen, and since when
        self._start, self._total = time.monotonic(), len(cells)
        self._before = {cell.id for cell in cells if store.read(cell)["final"]}
        self._ended = set(self._before)
        varied = cell_lists.differing([cell.overrides for cell in cells])
        self._labels = {c.id: cell_lists.label(c.overrides, varied) for c in cells}

    def report(self, record: Record) -> None:
        """A run has started or ended."""
        if record["final"]:
            self._ended.add(record["id"])
        if self._live and record["status"] == "running":
            return  # the drawing shows it
        parts = [f"{record['status']:<9}", record["id"], self._labels[record["id"]]]
        if record["status"] != "running":
            if "val" in record and record["val"].get("loss") is not None:
                parts.append(f"loss {record['val']['loss']:.4f}")
            parts += [metrics.duration(record["seconds"]), record["reason"]]
        self._erase()
        count = f"[{len(self._ended)}/{self._total}]"
        self._put("  ".join([count, *filter(None, parts)]) + "\n")

    def tick(self, running: Sequence[str]) -> None:
        """On a terminal, draw the runs that go on."""
        if not self._live or time.monotonic() < self._at + EVERY:
            return
        self._erase()
        self._at = time.monotonic()
        left = self._total - len(self._ended)
        took = self._at - self._start
        line = f"{len(self._ended)} ended, {len(running)} running  {metrics.duration(took)}"
        if done := len(self._ended - self._before):
            line += f"  eta {metrics.duration(took / done * left)}"
        lines = [line]
        for cell in running:
            found = progress(self._store.run(cell), {})
            told = [f"{name} {_text(x)}" for name, x in found.items() if x is not None]
            lines.append("  ".join([cell, self._labels[cell], *told]))
        width = shutil.get_terminal_size().columns - 1
        self._put("".join(f"{line[:width]}\n" for line in lines))
        self._drawn = len(lines)

    def _erase(self) -> None:
        if self._drawn:
            self._put(f"\x1b[{self._drawn}A\x1b[J")
            self._drawn = 0

    def _put(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
