"""The table and the JSON of a benchmark."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.bench.rounds import Plan, Row
from launch.bench.workloads import WORKLOADS

HEADER = (
    f"{'workload':<26}{'peer':<15}{'ratio':>7}{'10-90 %':>14}{'cpu':>7}{'ms/step':>19}"
    f"{'first step s':>16}{'memory MB':>15}{'rate':>20}"
)
LEGEND = (
    "ratio: ours / peer, lower is better (median of the rounds' ratios); cpu: of processor time; "
    "pairs are ours / peer"
)


def cpu_model() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def machine(plan: Plan) -> dict[str, Any]:
    """Where this ran."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": plan.threads,
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def line(row: Row) -> str:
    """One row of the table, with the reason below it where there is no ratio."""
    name = f"{row.workload:<26}{row.peer:<15}"
    if row.ours is None:
        return f"{name}failed: {_indented(row.error)}"
    theirs = row.theirs
    text = f"{name}{'':>7}{'':>14}{'':>7}"
    if row.time is not None and row.cpu_time is not None:
        spread = f"{row.time.low:.2f}-{row.time.high:.2f}"
        text = f"{name}{row.time.median:>7.3f}{spread:>14}{row.cpu_time.median:>7.2f}"
    text += _pair(row.ours, theirs, "step_ms", 19) + _pair(row.ours, theirs, "first_step_s", 16)
    text += _pair(row.ours, theirs, "memory_mb", 15) + f"{rate(row):>20}"
    if row.error:
        text += f"\n  {'not installed' if row.missing else 'failed'}: {_indented(row.error)}"
    return text


def equal_work(row: Row) -> str:
    """Parameters and losses of both sides, for the reader to see that the work is the same."""
    if row.ours is None or row.theirs is None or not row.ours["parameters"]:
        return ""
    text = f"  {row.ours['parameters']:,} parameters on both sides"
    if row.ours["losses"]:
        here, there = (" to ".join(f"{x:.3f}" for x in r["losses"]) for r in (row.ours, row.theirs))
        text += f"; loss {here} here, {there} there"
    return text


def utilisation(row: Row) -> str:
    """Model FLOP utilisation of ours, with both conventions for attention, and the peak."""
    if row.ours is None or not row.ours["flops"]:
        return ""
    speeds = {name: f / row.ours["step_ms"] * 1e3 for name, f in row.ours["flops"].items()}
    text = "  " + ", ".join(f"{x / 1e9:,.0f} GFLOP/s {name}" for name, x in speeds.items())
    if row.ours["peak"]:
        shares = (f"{x / row.ours['peak']:.1%} {name}" for name, x in speeds.items())
        text += f"; MFU {', '.join(shares)} (attention) of {row.ours['peak_note']}"
    return text


def rate(row: Row) -> str:
    """What ours gets through per second."""
    assert row.ours is not None
    workload = WORKLOADS[row.workload]
    size = workload.sizes[row.size]
    seconds = row.ours["step_ms"] / 1e3
    return f"{size.work / seconds:,.0f} {workload.unit}"


def _pair(ours: dict[str, Any], theirs: dict[str, Any] | None, key: str, width: int) -> str:
    there = f"{theirs[key]:.4g}" if theirs is not None else "-"
    return f"{ours[key]:.4g} / {there}".rjust(width)


def _indented(text: str) -> str:
    return text.replace("\n", "\n    ")


def as_json(rows: Sequence[Row], plan: Plan) -> dict[str, Any]:
    """Everything that was measured."""
    return {
        "machine": machine(plan),
        "plan": dataclasses.asdict(plan),
        "rows": [dataclasses.asdict(row) | _sizes(row) for row in rows],
    }


def _sizes(row: Row) -> dict[str, Any]:
    sizes = WORKLOADS[row.workload].sizes
    return {"sizes": dataclasses.asdict(sizes[row.size]) if row.size else None}
