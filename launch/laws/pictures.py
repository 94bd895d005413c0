"""Which pictures the data of a study allow, and what goes into each (drawn by plots.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launch.laws import plots
from launch.laws.analysis import LEVEL, SMOOTH, Analysis, Array, Forecast, Minima
from launch.laws.plots import Band, Slice
from nn.analysis import scaling_laws as laws
from nn.analysis.scaling_laws.envelope import smooth
from nn.analysis.scaling_laws.table import Table, View

NAMES = {"isoflop": "IsoFLOP parabolas", "parametric": "parametric law", "envelope": "envelope"}


def draw(
    folder: Path, made: Analysis, held: Table, forecasts: Sequence[Forecast], metric: str
) -> dict[str, str]:
    """The pictures that the data allow: file name -> what it shows."""
    found: dict[str, str] = {}

    def keep(name: str, figure: Any, caption: str) -> None:
        plots.save(figure, folder / f"{name}.png")
        found[f"{name}.png"] = caption

    view = made.view
    parts = _slices(made, held)
    if parts:
        figure, axes = plots.figure()
        plots.isoflop(axes, parts, view.convention, metric)
        keep("isoflop", figure, "loss against size at each budget, parabolas and their minima")
    if made.envelope is not None:
        figure, axes = plots.figure()
        curves = [(c.C, np.exp(smooth(c, SMOOTH))) for c in made.curves]
        plots.envelope(axes, curves, (made.envelope.C, made.envelope.L), f"training {metric}")
        keep("envelope", figure, "training curves and the lowest loss at each compute")
    if made.minima is not None or made.parametric is not None:
        _laws(made, held, forecasts, metric, keep)
    if made.parametric is not None:
        _parametric(made, keep, metric)
    return found


def _slices(made: Analysis, held: Table) -> list[Slice]:
    parts = []
    minima = {} if made.minima is None else {m.C: m for m in made.minima.fit.minima}
    views = [(made.view, False)]
    if len(held):
        views.append((held.view(made.view.convention), True))
    for view, out in views:
        numbers = view.budgets()
        for number in range(numbers.max() + 1):
            rows = np.flatnonzero(numbers == number)
            if len(rows) < 3:
                continue
            C = float(np.exp(np.log(view.C[rows]).mean()))
            near = next((m for c, m in minima.items() if abs(math.log(c / C)) < 1e-6), None)
            curve, best = None, None
            if near is not None and not out:
                curve, best = _parabola(view, rows, near), (near.N, near.L)
            parts.append(Slice(C, view.N[rows], view.L[rows], curve, best, out))
    return sorted(parts, key=lambda part: part.budget)


def _parabola(view: View, rows: Any, minimum: Any) -> Any:
    """Through the minimum's window, as approach 2 has it."""
    n, L = np.log(view.N[rows]), view.L[rows]
    near = np.abs(n - math.log(minimum.N)) <= math.log(minimum.span) + 1e-9
    middle = n[near].mean()
    c = np.polyfit(n[near] - middle, L[near], 2)
    return lambda x: np.polyval(c, np.log(x) - middle)


def _laws(
    made: Analysis, held: Table, forecasts: Sequence[Forecast], metric: str, keep: Any
) -> None:
    """Optimal sizes and losses along compute."""
    ends = [*made.view.C, *(one.C for one in forecasts)]
    x = np.geomspace(min(ends), max(ends), 40)
    fitted = () if made.minima is None else made.minima.fit.minima
    C, N, L = np.asarray([(m.C, m.N, m.L) for m in fitted]).reshape(-1, 3).T
    best = _best_held(held, made.view.convention)
    figure, axes = plots.figure(10.5, 4.4, columns=2)
    sizes, losses = [], []
    for law, name in ((made.minima, "isoflop"), (made.parametric, "parametric")):
        if law is None:
            continue
        along = [law.forecast(float(C)) for C in x]
        middle, low, high = np.asarray([(f.L, f.low, f.high) for f in along]).T
        label = NAMES[name] + (" (chosen)" if law is made.chosen else "")
        losses.append(Band(x, middle, low, high, label))
        best_N = np.asarray([f.N for f in along])
        if np.isnan(best_N).any():
            continue
        sizes.append(Band(x, best_N, *_size_band(law, x), label))
    plots.optima(axes[0], (C, N), sizes, (best[0], best[1]), "N*, parameters")
    plots.frontier(axes[1], (C, L), losses, (best[0], best[2]), metric)
    keep("laws", figure, f"best sizes and losses along compute, {LEVEL:.0%} bands, held-out runs")


def _size_band(law: Any, x: Array) -> tuple[Array, Array]:
    if isinstance(law, Minima):
        low, high = law.fit.interval(x, LEVEL)
        return low, high
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    low, high = np.quantile(law.boot.frontier(x).N, ends, axis=0)
    return low, high


def _best_held(held: Table, convention: str) -> tuple[Array, Array, Array]:
    """C, N, L of the best run of each held-out budget."""
    if not len(held):
        empty = np.asarray([])
        return empty, empty, empty
    view = held.view(convention)
    numbers = view.budgets()
    best = [
        min(np.flatnonzero(numbers == i), key=lambda row: view.L[row])
        for i in range(numbers.max() + 1)
    ]
    return view.C[best], view.N[best], view.L[best]


def _parametric(made: Analysis, keep: Any, metric: str) -> None:
    assert made.parametric is not None
    fit, boot, view = made.parametric.fit, made.parametric.boot, made.view
    if {"N", "D"} == set(fit.form.columns):
        figure, axes = plots.figure(7, 5)
        x = np.geomspace(view.C.min() / 3, view.C.max() * 3, 60)
        best = [laws.optimal(fit, C=float(C)) for C in x]
        line = ([float(b.N[0]) for b in best], [float(b.D[0]) for b in best])
        plots.contour(axes, lambda N, D: fit.predict(N=N, D=D), view.N, view.D, line, "tokens")
        keep("contour", figure, f"{metric} by the fitted law, the runs, and the efficient frontier")
    columns = {"N": view.N, "D": view.D}
    if view.table.has("lr") and np.ptp(view.table.number("lr")):
        columns["learning rate"] = view.table.number("lr")
    figure, axes = plots.figure(3.6 * len(columns), 3.4, columns=len(columns))
    plots.residuals(axes, columns, np.expm1(-fit.residuals))
    keep("residuals", figure, "residuals of the parametric law")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 7.5), layout="constrained")
    draws = {name: v for name, v in boot.draws.items() if name not in fit.pins}
    logs = {f"ln {n}" if n in fit.form.logs else n: np.log(v) if n in fit.form.logs else v
            for n, v in draws.items()}  # fmt: skip
    plots.corner(figure, logs)
    keep("bootstrap", figure, f"parameters in {len(boot.phi_SP)} resamples of the runs")
    if {"N", "D"} == set(fit.form.columns):
        figure, axes = plots.figure(7, 4)
        plots.strip(axes, _sensitivity(made), "a, exponent of N* in compute")
        keep("sensitivity", figure, "the exponent when runs, delta or the count change")


def _sensitivity(made: Analysis) -> list[tuple[str, float, float, float]]:
    assert made.parametric is not None
    fit, boot = made.parametric.fit, made.parametric.boot
    middle = float(np.exp(np.log(made.view.C).mean()))
    whole = boot.optimum(middle, LEVEL)["a"]
    rows = [("all runs", whole.estimate, whole.low, whole.high)]
    for row in laws.drop_k(fit):
        if row["k"]:
            rows.append((f"without {row['k']:.0f} highest", row["a"], row["a"], row["a"]))
    for row in laws.delta_sweep(fit):
        rows.append((f"delta {row['delta']:g}", row["a"], row["a"], row["a"]))
    for name, side in made.sides.items():
        rows.append((f"N: {name}", side.a, side.a - 1.64 * side.a_se, side.a + 1.64 * side.a_se))
        if side.isoflop is not None:
            a, se = side.isoflop.a, 1.64 * side.isoflop.a_se
            rows.append((f"N: {name}, IsoFLOP", a, a - se, a + se))
    return rows
