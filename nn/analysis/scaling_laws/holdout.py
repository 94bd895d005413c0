"""Would the law have foretold the runs that came later, and which runs does it hang on?

A good fit (R^2) says nothing about a forecast. These refits do: fit budgets up to i, predict i+1
and above (`leave_future_out`, the headline number of a report, with the measured coverage of its
intervals); leave out one run (`influence`), the k highest losses (`drop_k`); change delta
(`delta_sweep`). All are weighted problems over the same rows, solved together.

Legend: S problems, P parameters, I rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nn.analysis.scaling_laws.identify import Design
from nn.analysis.scaling_laws.optimum import Cost, exponents
from nn.analysis.scaling_laws.parametric import Fit, fit_parametric
from nn.analysis.scaling_laws.resampling import percentiles, refit, resample_weights
from nn.analysis.scaling_laws.solve import solve
from nn.analysis.scaling_laws.table import Array, Labels, Mask, Table, View

MAX_STAGES = 12


@dataclass(frozen=True)
class HeldOut:
    """Runs of one budget predicted from the budgets up to another."""

    trained_to: float  # compute of the largest budget that was fitted
    C: float
    rows: int
    error: float  # mean of predicted/measured - 1
    worst: float  # the one of largest size, with its sign
    covered: float  # share of losses inside the 95 % interval, residuals included
    covered_by_law: float  # the same by the parameters' draws alone


def leave_future_out(fit: Fit, resamples: int = 200, seed: int = 0) -> list[HeldOut]:
    """Fit every initial stretch of budgets, predict all later ones.

    Stretches that can not hold the law (one budget, too few rows, N and D not varying apart) are
    left out; an empty list means that none could.
    """
    view, budgets = fit.view, stages(fit.view)
    compute = np.exp(np.bincount(budgets, np.log(view.C)) / np.bincount(budgets))
    rng = np.random.default_rng(seed)
    rows = []
    for last in range(1, budgets.max()):
        known = budgets <= last
        if not _holds(fit, known):
            continue
        weights = resample_weights(np.arange(len(view)), resamples, rng, known)
        phi_SP = refit(fit, np.concatenate([known[None].astype(np.float64), weights]))
        value = fit.form.value_and_jacobian(phi_SP, fit.problem.x_KI)[0]
        best, draws = value[0], value[1:]
        actual = fit.problem.log_loss[0]
        free = int(fit.problem.free_P.sum())
        scale = np.sqrt(known.sum() / (known.sum() - free))
        noisy = draws + rng.choice((actual - best)[known] * scale, draws.shape)
        by_law, by_all = (_inside(actual, d) for d in (draws, noisy))
        error = np.expm1(best - actual)
        for later in range(last + 1, budgets.max() + 1):
            at = budgets == later
            worst = error[at][np.argmax(np.abs(error[at]))]
            rows.append(
                HeldOut(
                    trained_to=float(compute[last]),
                    C=float(compute[later]),
                    rows=int(at.sum()),
                    error=float(error[at].mean()),
                    worst=float(worst),
                    covered=float(by_all[at].mean()),
                    covered_by_law=float(by_law[at].mean()),
                )
            )
    return rows


def stages(view: View) -> Labels:
    """Budgets of a table, (I,), in rising order; many single ones joined to MAX_STAGES of them.

    A table of scattered runs has as many budgets as rows: neighbours are joined into stages of
    equally many rows.
    """
    budgets = view.budgets()
    if budgets.max() < MAX_STAGES:
        return budgets
    rank = np.argsort(np.argsort(view.C, kind="stable"), kind="stable")
    return rank * MAX_STAGES // len(view)


def _holds(fit: Fit, known: Mask) -> bool:
    if known.sum() <= fit.problem.free_P.sum() + 1:
        return False
    if not {"N", "D"} <= set(fit.form.columns) or set(fit.pins) - {"E"}:
        return True
    try:
        Design.of(fit.view.table.keep(known, "held out").view(fit.view.convention)).refuse()
    except ValueError:
        return False
    return True


def _inside(actual: Array, draws: Array, level: float = 0.95) -> Array:
    low, high = percentiles(draws, level)
    return ((actual >= low) & (actual <= high)).astype(np.float64)


def coverage(rows: Sequence[HeldOut]) -> tuple[float, float]:
    """Measured coverage of the 95 % intervals over all held-out runs: with residuals, without."""
    counts = np.asarray([r.rows for r in rows], np.float64)
    with_noise = np.asarray([r.covered for r in rows])
    without = np.asarray([r.covered_by_law for r in rows])
    total = counts.sum()
    return float(counts @ with_noise / total), float(counts @ without / total)


def influence(fit: Fit, C: float | None = None) -> list[dict[str, Any]]:
    """What each run does to the law: per run its name and the change of every parameter (and of a)
    when it is left out, the most influential first (by the largest change in standard errors of
    the jackknife)."""
    rows = len(fit.view)
    phi_SP = refit(fit, 1.0 - np.eye(rows))
    values = fit.natural(np.concatenate([fit.phi_P[None], phi_SP]))
    if C is not None:
        values["a"] = _a(fit, np.concatenate([fit.phi_P[None], phi_SP]), C)
    changes = {name: v[1:] - v[0] for name, v in values.items()}
    size = np.zeros(rows)
    for change in changes.values():
        se = np.sqrt((rows - 1) / rows * ((change - change.mean()) ** 2).sum())
        size = np.maximum(size, np.abs(change) / max(float(se), 1e-300))
    runs = fit.view.table.columns["run"]
    return [
        {"run": str(runs[i]), **{name: float(change[i]) for name, change in changes.items()}}
        for i in np.argsort(-size, kind="stable")
    ]


def drop_k(fit: Fit, ks: Sequence[int] = (0, 1, 3, 5, 8, 20)) -> list[dict[str, float]]:
    """The law without the k highest losses, for every k that leaves enough rows."""
    rows = len(fit.view)
    allowed = [k for k in ks if rows - k > fit.problem.free_P.sum()]
    order = np.argsort(-fit.view.L, kind="stable")
    weights = np.ones((len(allowed), rows))
    for weight, k in zip(weights, allowed, strict=True):
        weight[order[:k]] = 0.0
    return _table(fit, refit(fit, weights), "k", allowed)


def delta_sweep(
    fit: Fit, deltas: Sequence[float] = (1e-1, 1e-2, 1e-3, 0.0)
) -> list[dict[str, float]]:
    """The law under other deltas of Huber's loss."""
    delta = np.asarray(deltas, np.float64)
    problem = replace(fit.problem, delta=delta)
    solved = solve(problem, np.repeat(fit.phi_P[None], len(delta), axis=0))
    return _table(fit, solved.phi_SP, "delta", deltas)


def _table(fit: Fit, phi_SP: Array, name: str, labels: Sequence[float]) -> list[dict[str, float]]:
    values = fit.natural(phi_SP)
    if fit.form.columns == ("N", "D"):
        values["a"] = _a(fit, phi_SP, float(np.exp(np.log(fit.view.C).mean())))
    return [
        {name: float(label), **{key: float(v[i]) for key, v in values.items()}}
        for i, label in enumerate(labels)
    ]


def _a(fit: Fit, phi_SP: Array, C: float) -> Array:
    return exponents(fit.form, fit.uncentred(phi_SP), C, Cost.of(fit.view))[0]


@dataclass(frozen=True)
class Choice:
    """One candidate law: its fit, and its root-mean-square relative error on held-out budgets."""

    form: str
    pins: Mapping[str, float]
    fit: Fit
    error: float


def choose(
    data: Table | View,
    candidates: Sequence[tuple[str, Mapping[str, float]]] = (
        ("chinchilla", {}),
        ("chinchilla", {"E": 0.0}),
        ("shared_exponent", {}),
        ("kaplan", {}),
    ),
    **options: Any,
) -> list[Choice]:
    """Candidate laws by their error on the budget after the fitted ones, the best first.

    By hold-out, never by R^2: a free E always fits better, and may forecast far worse.
    """
    found = []
    for form, pins in candidates:
        fit = fit_parametric(data, form, pin=pins, **options)
        rows = leave_future_out(fit, resamples=2)
        nearest = {r.trained_to: r for r in reversed(rows)}.values()  # the next budget of each
        if nearest:
            error = float(np.sqrt(np.mean([r.error**2 for r in nearest])))
            found.append(Choice(form, dict(pins), fit, error))
    if not found:
        raise ValueError("no candidate could be held out: more budgets are needed (at least 3)")
    return sorted(found, key=lambda choice: choice.error)
