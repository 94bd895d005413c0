"""What a sweep would train: the size and cost of every cell, traced without any device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from launch.run import meshes, metrics, shapes
from launch.run.build import build
from launch.run.state import abstract_state
from launch.sweeping import cells as cell_lists
from launch.sweeping import record, view
from launch.sweeping.cells import Cell
from nn import parallel


def of_cell(cell: Cell) -> dict[str, Any]:
    """Counts of parameters, steps, tokens or examples, and FLOPs, as its record will have them.

    Raises ValueError where the config cannot be built.
    """
    one: Any = meshes.abstract(dict.fromkeys(parallel.AXES, 1))
    run = build(cell.config, mesh=one)
    rule, steps = run.rule, cell.config.train.steps
    batch = shapes.batch_of(cell.config, rule.task)
    flops = shapes.model_flops(cell.config, rule.task, abstract_state(rule), batch).total
    counts, tokens = record.count(run), shapes.tokens(cell.config, rule.task)
    return {
        "N_total": counts.total,
        "N_nonemb": counts.nonemb,
        "N_matmul": counts.matmul,
        "steps": steps,
        "examples": steps * cell.config.data.batch_size,
        "tokens": steps * tokens,
        "flops_exact": float(steps * flops),
    }


def text(cells: Sequence[Cell]) -> str:
    """The table that `--dry-run` prints. Raises ValueError as `of_cell` does, with the cell."""
    varied = cell_lists.differing([cell.overrides for cell in cells])
    rows: list[dict[str, Any]] = []
    for number, cell in enumerate(cells, 1):
        try:
            found = of_cell(cell)
        except ValueError as error:
            raise ValueError(f"cell {number} of the sweep: {error}") from error
        row = {"": number, "id": cell.id, "cell": cell_lists.label(cell.overrides, varied)}
        rows.append(row | found)
    total = sum(row["flops_exact"] for row in rows)
    return f"{view.table(rows)}\n\n{len(rows)} cells, {metrics.short(total)}FLOPs in all"
