"""Runs a study: slice after slice, each around the minimum that the ones before it forecast.

    study.json     the study, the centres of its slices, what every cell is for
    the rest       as of any sweep (launch/sweeping/store.py)

A study that was stopped goes on: centres that were chosen stay, so that the cells are the same.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from launch.laws import source
from launch.laws.planner import Cell, Plan, Planner, as_row
from launch.laws.study import COLUMNS, as_dict
from launch.run.workdir import write_atomically
from launch.sweeping import cells as cell_lists
from launch.sweeping.store import Store
from nn.analysis import scaling_laws as laws
from nn.analysis.scaling_laws.table import Table

Run = Callable[[Store, Sequence[cell_lists.Cell]], int]


@dataclasses.dataclass
class Conduct:
    """spec, overrides: of the experiment. run: trains cells; returns an exit code."""

    planner: Planner
    spec: str
    overrides: Sequence[str]
    store: Store
    run: Run
    say: Callable[[str], None] = print

    def all(self) -> int:
        """Every slice in turn, then what is held out. Returns the first exit code that is not 0,
        after which nothing further is started."""
        study = self.planner.study
        centers = self._known().get("centers", {})
        centers = {float(budget): center for budget, center in centers.items()}
        fitted = sorted(study.budgets) if study.recenter else sorted(study.budgets)[-1:]
        for budget in fitted:
            if study.recenter and budget not in centers:
                centers[budget] = self._center(budget, centers)
            if code := self._train(self._part(centers, budget), centers):
                return code
        if study.held_out and study.recenter:
            for budget in sorted(study.held_out):
                centers.setdefault(budget, self._center(budget, centers))
        return self._train(self.planner.plan(centers), centers)

    def _part(self, centers: dict[float, float], last: float) -> Plan:
        """Cells of slices up to a budget, whether there are larger ones or not."""
        plan = self.planner.plan(centers)
        cells = [c for c in plan.cells if 0 < c.budget <= last and c.role != "held out"]
        return Plan(cells, plan.left_out)

    def _center(self, budget: float, centers: dict[float, float]) -> float:
        """Parameters at the centre of a slice: where the minima so far point to."""
        if not centers:
            return self.planner.center(budget)
        table = self.table()
        view = table.view(self.planner.study.convention)
        try:
            found = float(laws.fit_isoflop(view).N(budget))
        except ValueError:
            # One minimum, or none inside its slice: from the best run of the largest budget.
            largest = 0.5 * view.C.max() < view.C
            row = min(range(len(view)), key=lambda i: (not largest[i], view.L[i]))
            found = float(view.N[row] * math.sqrt(budget / view.C[row]))
        sizes = [model.parameters(self.planner.study.convention) for model in self.planner.models]
        found = min(max(found, sizes[0]), sizes[-1])
        self.say(f"slice of {budget:.3g} FLOPs: centred on {found:.3g} parameters")
        return found

    def table(self) -> Table:
        """Of the runs that are done."""
        rows = source.rows_of(self.store.path, self.store.records(), self.planner.study.metric)
        return source.tables(rows)[0]

    def _train(self, plan: Plan, centers: dict[float, float]) -> int:
        cells = resolved(plan.cells, self.spec, self.overrides)
        self.store.add(cells)
        self._keep(plan.cells, cells, centers)
        for line in plan.left_out:
            self.say(f"left out: {line}")
        return self.run(self.store, cells)

    def _known(self) -> dict[str, Any]:
        path = self.store.path / source.STUDY
        return json.loads(path.read_text("utf-8")) if path.is_file() else {}

    def _keep(
        self, planned: Sequence[Cell], cells: Sequence[cell_lists.Cell], centers: dict[float, float]
    ) -> None:
        """Write study.json; cells of an earlier form of the study stay in it."""
        kept = self._known().get("cells", {})
        kept |= {cell.id: as_row(made) for made, cell in zip(planned, cells, strict=True)}
        found = {
            "study": as_dict(self.planner.study),
            "config": self.spec,
            "overrides": list(self.overrides),
            "unique": self.planner.unique,
            "centers": {repr(budget): center for budget, center in sorted(centers.items())},
            "cells": kept,
        }
        write_atomically(self.store.path / source.STUDY, json.dumps(found, indent=1) + "\n")


def resolved(cells: Sequence[Cell], spec: str, overrides: Sequence[str]) -> list[cell_lists.Cell]:
    """Each with its id and config, one for one."""
    found = cell_lists.resolve_cells(spec, overrides, [cell.set for cell in cells])
    if len(found) != len(cells):
        raise ValueError(f"{len(cells) - len(found)} cells of the study are the same run twice")
    return found


def read_study(directory: str | Path) -> dict[str, Any]:
    """What study.json says. Raises FileNotFoundError where there is none."""
    path = Path(directory).expanduser() / source.STUDY
    if not path.is_file():
        raise FileNotFoundError(
            f"--workdir={directory}: no study there (no {source.STUDY}); start one with "
            "`python -m launch.scaling run`"
        )
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def convention_of(name: str | None, study: dict[str, Any] | None) -> str | None:
    """The one that was asked for, else the study's."""
    if name is not None or study is None:
        return name
    found: str = study["study"]["convention"]
    assert found in COLUMNS
    return found
