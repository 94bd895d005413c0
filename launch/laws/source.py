"""Tables of runs: from a study's directory, or from any CSV file."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nn import names
from nn.analysis.scaling_laws.envelope import Curve
from nn.analysis.scaling_laws.table import Excluded, Table

STUDY = "study.json"
# Roles of runs that no law is fitted to, and why.
APART = {
    "rate": "trained at another learning rate, to see whether the rule's is the best",
    "held out": "held out: the forecast is compared with it",
}


def of_csv(path: str | Path, columns: str = "", where: str = "") -> Table:
    """A table of a CSV file with a header.

    Args:
      columns: "N=params,D=tokens,L=loss,C=flops": ours = the file's; those of our names need none.
      where: conditions on rows, such as "steps >= 300 and status == done".
    Raises:
      FileNotFoundError, ValueError: no file, no rows, or no such column.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"--csv={path}: there is no such file")
    with file.open(newline="", encoding="utf-8-sig") as lines:
        rows = list(csv.DictReader(lines))
    if not rows:
        raise ValueError(f"--csv={path}: holds no rows below its header")
    called = {}
    for entry in filter(None, columns.split(",")):
        ours, equals, theirs = (part.strip() for part in entry.partition("="))
        if not equals:
            raise ValueError(f"--columns: {entry!r} must have the form N=column_of_the_file")
        called[names.lookup("column (before the equals sign)", ours, OURS)] = theirs
    table = Table.from_rows(rows, **called)
    return table.filter(where) if where else table


OURS = {
    name: name
    for name in (
        *("N", "N_total", "N_nonemb", "N_matmul", "D", "C", "L", "group", "run", "seed"),
        *("unique_tokens", "steps", "batch", "lr", "warmup", "experts", "granularity"),
    )
}


def rows_of(
    directory: Path, records: Iterable[Mapping[str, Any]], metric: str
) -> list[dict[str, Any]]:
    """One row per cell of a study, finished or not.

    records: of the store, in the order of the cells.
    """
    study = json.loads((directory / STUDY).read_text("utf-8"))
    cells = study["cells"]
    rows = []
    for record in records:
        if record["id"] not in cells:
            continue
        cell = cells[record["id"]]
        row = {
            "run": record["id"],
            "status": record["status"],
            "reason": record["reason"],
            "role": cell["role"],
            "group": cell["budget"] or "ratio",
            "width": cell["width"],
            "seed": cell["seed"],
            "rate_factor": cell["rate_factor"],
            "lr": cell["rate"],
            "unique_tokens": study["unique"],
        }
        if record["status"] == "done":
            units = record["tokens"] or record["examples"]
            per_step = units / record["steps"]
            row |= {name: record[name] for name in ("N_total", "N_nonemb", "N_matmul")}
            row |= {"D": units, "C": record["flops_exact"], "steps": record["steps"]}
            row |= {"batch": per_step, "warmup": record["warmup_steps"] * per_step}
            row["L"] = record["val"][metric] if metric in record["val"] else None
        rows.append(row)
    return rows


def tables(rows: Sequence[Mapping[str, Any]], where: str = "") -> tuple[Table, Table, Table]:
    """(what is fitted, that and the runs at other rates, the held-out runs)."""
    done = [row for row in rows if row["status"] == "done"]
    if not done:
        raise ValueError(
            f"none of the {len(rows)} runs is done: `python -m launch.scaling run` first, or "
            "look at `status`"
        )
    unfinished = tuple(
        Excluded(row["run"], f"{row['status']}{': ' if row['reason'] else ''}{row['reason']}")
        for row in rows
        if row["status"] != "done"
    )
    whole = Table.from_rows(done)
    whole = Table(whole.columns, (*whole.excluded, *unfinished))
    if where:
        whole = whole.filter(where)
    role = whole.columns["role"]
    held = whole.keep(role == "held out", "not held out")
    everything = whole.keep(role != "held out", APART["held out"])
    fitted = everything.keep(everything.columns["role"] != "rate", APART["rate"])
    return fitted, everything, held


def curves_of(directory: Path, table: Table) -> list[Curve]:
    """Training curves of the table's runs, of those that logged at least five points."""
    found = []
    for i, run in enumerate(table.columns["run"]):
        path = directory / "runs" / str(run) / "metrics.jsonl"
        if not path.is_file():
            continue
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        points = {x["step"]: x["loss"] for x in lines if x["split"] == "train" and x["loss"]}
        if len(points) < 5:
            continue
        steps = np.asarray(sorted(points), np.float64)
        per_step = table.number("C")[i] / table.number("steps")[i]
        batch = table.number("batch")[i]
        loss = np.asarray([points[int(step)] for step in steps])
        size = table.number("N_matmul")[i]
        found.append(Curve(size, steps * per_step, steps * batch, loss))
    return found
