"""Everything that a table of runs says about its law: three approaches, how far each is to be
believed, and which one forecasts.

The law that forecasts is the one that was best at foretelling budgets it had not seen. A fit that
looks better on what it has seen decides nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nn.analysis import scaling_laws as laws
from nn.analysis.scaling_laws import holdout, isoflop
from nn.analysis.scaling_laws.envelope import Curve, Envelope
from nn.analysis.scaling_laws.findings import Finding
from nn.analysis.scaling_laws.isoflop import IsoFlop
from nn.analysis.scaling_laws.table import Table, View

Array = npt.NDArray[np.float64]
LEVEL = 0.9  # of the intervals of forecasts
RESAMPLES = 1000
SMOOTH = 0.5  # of training curves, in ln C: they are losses of single batches


@dataclasses.dataclass(frozen=True)
class Forecast:
    """The best allocation of a budget and its loss; low, high: of a run that is trained.

    N, D: NaN of a law that knows compute alone.
    """

    by: str
    C: float
    N: float
    D: float
    L: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Minima:
    """Approach 2 as a forecast: ln L* = c + d ln C through the minima of slices.

    draws: of (slope, intercept) under resampled residuals, (S, 2). scatter: what is left of the
    minima about the line, relative. error: root mean square relative error of each slice's minimum
    as foretold from those below it; NaN with fewer than three slices.
    """

    fit: IsoFlop
    slope: float
    intercept: float
    draws: Array
    scatter: float
    error: float
    size_error: float  # the same of the logarithms of N*

    @property
    def findings(self) -> list[Finding]:
        return list(self.fit.findings)

    def forecast(self, C: float) -> Forecast:
        log_C = math.log(C)
        L = math.exp(self.intercept + self.slope * log_C)
        rng = np.random.default_rng(0)
        drawn = self.draws[:, 1] + self.draws[:, 0] * log_C
        drawn = drawn + self.scatter * rng.normal(size=drawn.shape)
        low, high = np.exp(np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
        N, D = float(self.fit.N(C)), float(self.fit.D(C))
        return Forecast("isoflop", C, N, D, L, float(low), float(high))


@dataclasses.dataclass(frozen=True)
class Parametric:
    """Approach 3: the candidate of least hold-out error, and all of them.

    error: root mean square, relative, of the means of the budgets after the fitted ones.
    """

    fit: laws.Fit
    boot: laws.Bootstrap
    choices: list[holdout.Choice]
    future: list[holdout.HeldOut]
    error: float
    minima_error: float = math.nan  # as `Minima.error`: of the lowest losses of later slices
    size_error: float = math.nan  # as `Minima.size_error`

    @property
    def name(self) -> str:
        pins = ", ".join(f"{name} = {value:g}" for name, value in self.fit.pins.items())
        return self.fit.form.name + (f" with {pins}" if pins else "")

    @property
    def findings(self) -> list[Finding]:
        return [*self.fit.findings, *self.boot.findings()]

    @property
    def allocates(self) -> bool:
        """Whether it says what a budget is best spent on."""
        return {"N", "D"} <= set(self.fit.form.columns)

    def forecast(self, C: float) -> Forecast:
        if not self.allocates:
            L, low, high = self.boot.predict({"C": C}, LEVEL)
            ends = float(L[0]), float(low[0]), float(high[0])
            return Forecast(self.name, C, math.nan, math.nan, *ends)
        best = laws.optimal(self.fit, C=C)
        N, D = float(best.N[0]), float(best.D[0])
        L, low, high = self.boot.predict({"N": N, "D": D}, LEVEL)
        return Forecast(self.name, C, N, D, float(L[0]), float(low[0]), float(high[0]))


@dataclasses.dataclass(frozen=True)
class Analysis:
    """refused: why an approach says nothing, by its name."""

    table: Table  # of the fit
    everything: Table  # with the runs at other rates
    view: View
    minima: Minima | None
    parametric: Parametric | None
    envelope: Envelope | None
    curves: Sequence[Curve]
    sides: dict[str, Any]
    refused: dict[str, str]
    findings: list[Finding]
    of_runs: list[Finding]  # those about how the runs were trained

    @property
    def chosen(self) -> Minima | Parametric:
        """What forecasts: of least hold-out error, the parabolas before where none has one."""
        if self.minima is None or self.parametric is None:
            found = self.minima or self.parametric
            assert found is not None
            return found
        other = self.parametric.minima_error
        better = math.isfinite(other) and not self.minima.error <= other
        return self.parametric if better else self.minima

    @property
    def allocator(self) -> Minima | Parametric:
        """What says how a budget is best spent: of least hold-out error of N*. The law with the
        best losses need not be it, as losses are flat about their minimum."""
        if self.minima is None or self.parametric is None:
            return self.chosen
        other = self.parametric.size_error
        better = math.isfinite(other) and not self.minima.size_error <= other
        return self.parametric if better else self.minima

    def forecast(self, C: float) -> Forecast:
        """The loss by `chosen`, the allocation by `allocator`."""
        spent = self.allocator.forecast(C)
        return dataclasses.replace(self.chosen.forecast(C), N=spent.N, D=spent.D)

    @property
    def red(self) -> list[Finding]:
        """What forbids the forecast: about the runs, or about the law that makes it. That another
        law is worse, or disagrees, does not, once hold-out has decided."""
        own = self.chosen.findings
        decided = self.minima is not None and math.isfinite(self.chosen.error)
        others = [] if decided else [f for f in self.findings if f.code == "approaches_differ"]
        found = [*own, *self.of_runs, *others]
        return [finding for finding in found if finding.severity == "red"]


def analyse(
    table: Table,
    convention: str | None = None,
    form: str | None = None,
    delta: float = 1e-3,
    window: float = 8.0,
    resamples: int = RESAMPLES,
    everything: Table | None = None,
    curves: Sequence[Curve] = (),
) -> Analysis:
    """Fit all that the table allows.

    Args:
      form: of approach 3; None: the candidate with the least hold-out error.
      everything: the table with runs that only show whether the others were tuned.
    Raises:
      ValueError: neither approach 2 nor 3 can say anything, with the reasons of both.
    """
    view = table.view(convention)
    refused: dict[str, str] = {}
    parametric = _parametric(view, form, delta, resamples, refused)
    minima = _minima(view, window, parametric, refused)
    if parametric is not None and minima is not None:
        error, size_error = _foretelling_minima(parametric.fit, minima.fit)
        parametric = dataclasses.replace(parametric, minima_error=error, size_error=size_error)
    if parametric is None and minima is None:
        reasons = "; ".join(f"{name}: {why}" for name, why in refused.items())
        raise ValueError(f"these runs determine no law. {reasons}")
    envelope = None
    if curves:
        try:
            envelope = laws.fit_envelope(curves, width=SMOOTH)
        except ValueError as error:
            refused["envelope"] = str(error)
    sides = {}
    if parametric is not None and parametric.allocates:
        options = {"delta": delta, "form": parametric.fit.form.name, "pin": parametric.fit.pins}
        sides = laws.side_by_side(table, min(resamples, 400), **options)
    of_runs = laws.under_tuned((everything or table).view(view.convention))
    findings = _findings(of_runs, view, minima, parametric, sides)
    return Analysis(
        table, everything or table, view, minima, parametric, envelope, curves, sides, refused,
        findings, of_runs,
    )  # fmt: skip


def _parametric(
    view: View, form: str | None, delta: float, resamples: int, refused: dict[str, str]
) -> Parametric | None:
    try:
        try:
            if form is None:
                choices = laws.choose(view, delta=delta)
            else:
                choices = laws.choose(view, [(form, {})], delta=delta)
            fit, error = choices[0].fit, choices[0].error
        except ValueError:  # too few budgets to hold one out
            fit, error = laws.fit_parametric(view, form or "chinchilla", delta=delta), math.nan
            choices = []
    except ValueError as problem:
        refused["parametric"] = str(problem)
        return None
    boot = laws.bootstrap(fit, resamples)
    return Parametric(fit, boot, choices, laws.leave_future_out(fit), error)


def _foretelling_minima(fit: laws.Fit, minima: IsoFlop) -> tuple[float, float]:
    """The hold-out errors of a parametric law where they matter, of L* and of ln N*: fitted to the
    budgets below each slice, against the minimum of that slice; for those that parabolas can be
    held to as well."""
    if not {"N", "D"} <= set(fit.form.columns):
        return math.nan, math.nan
    errors, sizes = [], []
    for later in minima.minima[2:]:
        below = fit.view.table.keep(fit.view.C < 0.99 * later.C, "held out")
        try:
            name, pins = fit.form.name, fit.pins
            known = laws.fit_parametric(
                below, name, convention=fit.view.convention, delta=fit.delta, pin=pins
            )
        except ValueError:
            return math.nan, math.nan
        best = laws.optimal(known, C=later.C)
        errors.append(float(best.L[0]) / later.L - 1)
        sizes.append(math.log(float(best.N[0]) / later.N))
    return _rms(errors), _rms(sizes)


def _rms(errors: Sequence[float]) -> float:
    return float(np.sqrt(np.mean(np.square(errors)))) if errors else math.nan


def _minima(
    view: View, window: float, parametric: Parametric | None, refused: dict[str, str]
) -> Minima | None:
    law = parametric.fit if parametric and parametric.allocates else None
    try:
        fit = laws.fit_isoflop(view, window=window, parametric=law)
    except ValueError as problem:
        refused["isoflop"] = str(problem)
        return None
    log_C = np.log([m.C for m in fit.minima])
    log_L = np.log([m.L for m in fit.minima])
    slope, intercept = np.polyfit(log_C, log_L, 1)
    left = log_L - (intercept + slope * log_C)
    # Two slices leave nothing over: then the scatter is that of a vertex under its own residuals.
    own = np.sqrt(np.mean([np.nanvar(np.log(m.loss_draws)) for m in fit.minima]))
    free = len(log_C) - 2
    scatter = max(float(np.sqrt((left**2).sum() / free)) if free else 0.0, float(own))
    rng = np.random.default_rng(0)
    noisy = intercept + slope * log_C + scatter * rng.normal(size=(RESAMPLES, len(log_C)))
    draws = np.polyfit(log_C, noisy.T, 1).T
    log_N = np.log([m.N for m in fit.minima])
    errors, sizes = [], []
    for last in range(2, len(log_C)):
        (d, a), (c, k) = np.polyfit(log_C[:last], np.stack([log_L, log_N])[:, :last].T, 1)
        errors.append(math.expm1(c + d * log_C[last] - log_L[last]))
        sizes.append(k + a * log_C[last] - log_N[last])
    ends = float(slope), float(intercept)
    return Minima(fit, *ends, draws, scatter, _rms(errors), _rms(sizes))


def _findings(
    of_runs: list[Finding],
    view: View,
    minima: Minima | None,
    parametric: Parametric | None,
    sides: dict[str, Any],
) -> list[Finding]:
    found = list(of_runs)
    for law in (minima, parametric):
        found += [] if law is None else law.findings
    if view.convention in sides:
        found += sides[view.convention].findings
    kept: dict[str, Finding] = {}
    for finding in found:
        kept.setdefault(finding.message, finding)
    order = {"red": 0, "amber": 1}
    return sorted(kept.values(), key=lambda finding: order[finding.severity])


def slices(parametric: Parametric, budgets: Sequence[float]) -> list[Array]:
    """Curves of the parametric law along budgets, (2, points) each: N and L."""
    return isoflop.slices(parametric.fit, budgets)
