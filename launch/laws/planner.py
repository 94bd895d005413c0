"""From a study to its cells: which models are trained on how much, with what rate.

Budgets are exact: a cell's FLOPs are those of its whole number of steps, counted on its own
program. What cannot be run as asked is left out with its reason.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import FrozenConfigDict

from launch.laws import rules
from launch.laws.sizes import Size, size
from launch.laws.study import COLUMNS, Study
from launch.run import config as configs
from launch.run.keys import render


@dataclasses.dataclass(frozen=True)
class Model:
    """One size. set: what its config sets beside the experiment's."""

    width: int  # 0: of no width, it was given as overrides
    set: Mapping[str, Any]
    size: Size

    def parameters(self, convention: str) -> float:
        return float(getattr(self.size, COLUMNS[convention]))


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run. budget: FLOPs of its slice or 0; role: slice, ratio, rate, noise, held out."""

    model: Model
    role: str
    budget: float
    steps: int
    units: int  # tokens or examples that are trained on
    flops: int
    rate: float  # learning rate at its peak
    rate_factor: float  # that of the rule times this
    seed: int
    batch_size: int
    set: Mapping[str, Any]  # overrides, the model's among them

    @property
    def overrides(self) -> list[str]:
        return configs.overrides_of(self.set)


@dataclasses.dataclass(frozen=True)
class Plan:
    cells: list[Cell]
    left_out: list[str]  # sentences

    @property
    def flops(self) -> float:
        return float(sum(cell.flops for cell in self.cells))


class Planner:
    """Cells of a study on an experiment.

    Args:
      config: of the experiment; spec, overrides: from which it was read.
      unique: units of data in its training split; None: without end.
    """

    def __init__(
        self,
        study: Study,
        spec: str,
        overrides: Sequence[str] = (),
        unique: int | None = None,
    ) -> None:
        self.study, self.spec, self.unique = study, spec, unique
        self._load = functools.partial(_loaded, spec, tuple(overrides))
        self.config = self._load(())
        self.models = self._models()
        base = min(self.models, key=lambda m: abs(m.width - study.base_width))
        if study.base_width and base.width != study.base_width:
            raise ValueError(
                f"study.base_width={study.base_width} is none of study.widths; "
                f"nearest: {base.width}"
            )
        self.rule = rules.Rule(study.rule, self.config, base.set)

    def plan(self, centers: Mapping[float, float] | None = None) -> Plan:
        """All cells, in the order of slices and sizes.

        centers: parameters at the centre of a slice, by its budget; the others follow from those by
          the exponent 1/2 of Hoffmann et al. 2022, and without any from `study.center`.
        """
        study, found = self.study, _Found([], [])
        for budget in sorted((*study.budgets, *study.held_out)):
            role = "held out" if budget in study.held_out else "slice"
            middle = self._center(budget, centers or {})
            points, span = study.points, study.span
            if role == "held out":
                points, span = study.held_out_points, math.sqrt(span)
            chosen = self._around(middle, points, span)
            for model in chosen:
                nearest = min(chosen, key=lambda m: abs(math.log(self._size(m) / middle)))
                self._cells(found, model, role, budget, model is nearest)
        for model in self.models:
            for ratio in study.ratios:
                self._add(found, model, "ratio", 0.0, ratio * self._size(model))
        total = sum(cell.flops for cell in found.cells)
        if 0 < study.max_flops < total:
            raise ValueError(
                f"the cells take {total:.3g} FLOPs, more than study.max_flops="
                f"{study.max_flops:.3g}; nearest: study.max_flops={math.ceil(total):.4g}, or leave "
                f"out the budget {max((*study.budgets, *study.held_out, 0)):.3g}"
            )
        return Plan(found.cells, found.left_out)

    @property
    def per_row(self) -> int:
        """Units of data in one example."""
        return self.models[0].size.units // self.config.data.batch_size

    def _size(self, model: Model) -> float:
        return model.parameters(self.study.convention)

    def _models(self) -> list[Model]:
        study, sets = self.study, []
        for width in study.widths:
            sets.append((width, of_width(study, width)))
        for text in study.models:
            entries = [entry.partition("=") for entry in text.split()]
            sets.append((0, {name: value for name, _, value in entries}))
        found = []
        for width, set_ in sets:
            config = self._load(tuple(configs.overrides_of(set_)))
            found.append(Model(width, set_, size(config)))
        return sorted(found, key=self._size)

    def _center(self, budget: float, centers: Mapping[float, float]) -> float:
        """Parameters in the middle of a slice."""
        if budget in centers:
            return centers[budget]
        return self.center(budget, centers)

    def center(self, budget: float, centers: Mapping[float, float] | None = None) -> float:
        """Parameters in the middle of a slice before anything is known of it."""
        if centers:
            near = min(centers, key=lambda other: abs(math.log(budget / other)))
            return centers[near] * math.sqrt(budget / near)
        # FLOPs per unit and parameter vary with the size: solved on the models themselves.
        sizes = [self._size(m) for m in self.models]
        spent = [
            self.study.center * size * model.size.flops_per_unit
            for size, model in zip(sizes, self.models, strict=True)
        ]
        return _interpolated(budget, spent, sizes)

    def _around(self, middle: float, points: int, span: float) -> list[Model]:
        """The models nearest to sizes evenly spread, in logarithm, over the span on both sides."""
        places = [2 * i / (points - 1) - 1 for i in range(points)] if points > 1 else [0.0]
        step = span ** (2 / max(points - 1, 1))  # from one place to the next
        chosen = set()
        for place in places:
            wanted = middle * span**place
            away = [abs(math.log(self._size(model) / wanted)) for model in self.models]
            near = min(range(len(away)), key=away.__getitem__)
            # A model nearer to another place, or beyond the last one, is no point of the slice.
            if away[near] <= 0.5 * math.log(step) * 1.01:
                chosen.add(near)
        return [self.models[i] for i in sorted(chosen)]

    def _cells(self, found: _Found, model: Model, role: str, budget: float, middle: bool) -> None:
        """A model's cells in a slice: its seeds, further rates, and what shows a seed's noise."""
        study = self.study
        units = budget / model.size.flops_per_unit
        for seed in study.seeds:
            self._add(found, model, role, budget, units, seed)
        if study.rates_at == "everywhere" or (study.rates_at == "middle" and middle):
            for factor in study.rates:
                self._add(found, model, "rate", budget, units, study.seeds[0], factor)
        budgets = sorted(study.budgets)
        if middle and budget == (budgets[len(budgets) // 2] if budgets else 0):
            for extra in range(1, study.noise_seeds):
                self._add(found, model, "noise", budget, units, max(study.seeds) + extra)

    def _add(
        self,
        found: _Found,
        model: Model,
        role: str,
        budget: float,
        units: float,
        seed: int | None = None,
        factor: float = 1.0,
    ) -> None:
        """A cell, or why there is none."""
        study = self.study
        at = self.rule.at(model, units)
        per_step = model.size.units * at.batch_size // self.config.data.batch_size
        steps = max(round(units / per_step), 1)
        cost = steps * per_step * model.size.flops_per_unit
        name = f"{_named(model)} on {units:.3g}"
        if why := self._refusal(steps, steps * per_step, cost, budget):
            found.left_out.append(f"{name}{f' of {budget:.3g} FLOPs' if budget else ''}: {why}")
            return
        set_ = dict(model.set) | dict(at.set)
        seed = study.seeds[0] if seed is None else seed
        rate = at.rate * factor
        set_ |= {
            "seed": seed,
            "train.steps": steps,
            "optimizer.learning_rate": rate,
            "optimizer.warmup_steps": round(study.warmup_fraction * steps),
            "data.batch_size": at.batch_size,
        }
        if study.schedule == "constant":
            set_["optimizer.schedule"] = "constant"
        cell = Cell(
            model, role, budget, steps, steps * per_step, round(cost), rate, factor, seed,
            at.batch_size, set_,
        )  # fmt: skip
        if cell.overrides not in [other.overrides for other in found.cells]:
            found.cells.append(cell)

    def _refusal(self, steps: int, units: int, cost: float, budget: float) -> str | None:
        study = self.study
        if steps < study.min_steps:
            return f"{steps} steps are fewer than study.min_steps={study.min_steps}"
        if budget and abs(cost / budget - 1) > study.flops_error:
            off = f"{cost / budget - 1:+.1%}"
            return f"{steps} whole steps are {off} off; study.flops_error={study.flops_error:g}"
        if self.unique is not None and units > study.max_epochs * self.unique:
            epochs = units / self.unique
            return f"{epochs:.1f} epochs are more than study.max_epochs={study.max_epochs:g}"
        return None


@dataclasses.dataclass
class _Found:
    cells: list[Cell]
    left_out: list[str]


def of_width(study: Study, width: int) -> dict[str, Any]:
    """What a model of a width sets, by key. Raises ValueError where heads do not divide it."""
    set_: dict[str, Any] = {study.width_key: width}
    for entry in study.multiples:
        name, _, times = entry.partition("=")
        set_[name] = round(width * float(times))
    if study.aspect:
        set_[study.depth_key] = max(round(width / study.aspect), 1)
    if study.head_dim:
        if width % study.head_dim:
            nearest = max(round(width / study.head_dim), 1) * study.head_dim
            raise ValueError(
                f"study.widths: {width} is no multiple of study.head_dim={study.head_dim}; "
                f"nearest: {nearest}"
            )
        set_[study.heads_key] = width // study.head_dim
    return set_


def _named(model: Model) -> str:
    return f"width {model.width}" if model.width else " ".join(map(str, model.set.values()))


@functools.cache
def _loaded(spec: str, overrides: tuple[str, ...], set_: tuple[str, ...]) -> FrozenConfigDict:
    return configs.load(spec, [*overrides, *set_])


def _interpolated(at: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """y at x, linear in logarithms, and beyond the ends by the exponent 1/2."""
    if at <= xs[0]:
        return ys[0] * math.sqrt(at / xs[0])
    if at >= xs[-1]:
        return ys[-1] * math.sqrt(at / xs[-1])
    right = next(i for i, x in enumerate(xs) if x >= at)
    left = right - 1
    share = math.log(at / xs[left]) / math.log(xs[right] / xs[left])
    return math.exp((1 - share) * math.log(ys[left]) + share * math.log(ys[right]))


def as_row(cell: Cell) -> dict[str, Any]:
    """For tables and JSON."""
    made = cell.model.size
    return {
        "width": cell.model.width,
        "role": cell.role,
        "budget": cell.budget,
        "N_total": made.N_total,
        "N_nonemb": made.N_nonemb,
        "N_matmul": made.N_matmul,
        "units": cell.units,
        "steps": cell.steps,
        "batch_size": cell.batch_size,
        "flops": cell.flops,
        "rate": cell.rate,
        "rate_factor": cell.rate_factor,
        "seed": cell.seed,
        "overrides": {name: render(value) for name, value in cell.set.items()},
    }
