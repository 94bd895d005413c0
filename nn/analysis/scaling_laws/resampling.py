"""How far could the answer be off: resampled runs, refitted all at once.

A bootstrap draws rows with replacement (pairs), or whole clusters of them (checkpoints of one run,
runs of one model): drawing a row k times is weighting it by k, so that every resample is one of S
weighted problems over the same rows, started from the fit (Efron and Tibshirani 1993).

The interval of a *parameter* is a percentile interval. The interval of a *run's loss* needs the
scatter of runs about the law too: parameter draws alone covered 13-58 % of held-out points where
95 % was promised. `Bootstrap.predict` therefore adds resampled residuals.

Legend: S resamples, P parameters, I rows, J predicted runs or budgets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from nn.analysis.scaling_laws.findings import Finding
from nn.analysis.scaling_laws.optimum import Cost, Optimum, exponents, frontier
from nn.analysis.scaling_laws.parametric import Fit
from nn.analysis.scaling_laws.solve import Problems, solve
from nn.analysis.scaling_laws.table import Array, Labels, Mask

TOLERANCE = 1e-8  # of a refit: far below the spread between resamples


@dataclass(frozen=True)
class Interval:
    """An estimate with its standard error (`log_se`: of its logarithm) and percentile bounds."""

    estimate: float
    se: float
    log_se: float
    low: float
    high: float

    @classmethod
    def of(cls, estimate: float, draws: Array, level: float = 0.95) -> Interval:
        """From draws (S,); the error of the logarithm is NaN where a draw is not positive."""
        low, high = percentiles(draws, level)
        positive = bool((draws > 0).all())
        log_se = float(np.log(draws).std(ddof=1)) if positive else float("nan")
        return cls(estimate, float(draws.std(ddof=1)), log_se, float(low), float(high))


def percentiles(draws: Array, level: float = 0.95) -> tuple[Array, Array]:
    """The central interval of the draws along the first axis."""
    edges = np.percentile(draws, [50 * (1 - level), 50 * (1 + level)], axis=0)
    return edges[0], edges[1]


def resample_weights(
    clusters: Labels, resamples: int, rng: np.random.Generator, within: Mask | None = None
) -> Array:
    """(S, I): how often each row is drawn. `clusters`: (I,) labels; `within`: (I,) rows to draw."""
    rows = np.ones(len(clusters), bool) if within is None else within
    labels, index = np.unique(clusters[rows], return_inverse=True)
    counts = rng.multinomial(len(labels), np.full(len(labels), 1 / len(labels)), resamples)
    weights = np.zeros((resamples, len(clusters)))
    weights[:, rows] = counts[:, index.reshape(-1)]
    return weights


def refit(fit: Fit, weights: Array, log_loss: Array | None = None) -> Array:
    """phi (S, P) of the fit's problem under other weights (S, I) and, if given, other losses."""
    given = fit.problem.weights[0] * weights
    losses = fit.problem.log_loss if log_loss is None else log_loss
    problem: Problems = replace(fit.problem, weights=given, log_loss=losses)
    start = np.repeat(fit.phi_P[None], max(len(weights), len(losses)), axis=0)
    return solve(problem, start, TOLERANCE).phi_SP


@dataclass(frozen=True)
class Bootstrap:
    """Refits of resampled tables: phi of centred features, (S, P)."""

    fit: Fit
    phi_SP: Array

    @property
    def draws(self) -> dict[str, Array]:
        """Parameters by name, each (S,)."""
        return self.fit.natural(self.phi_SP)

    def frontier(
        self, C: Array, cost: Cost | None = None, fixed: Mapping[str, float] | None = None
    ) -> Optimum:
        """N*, D*, L* of budgets for every resample: fields are (S, J)."""
        cost = cost or Cost.of(self.fit.view)
        return frontier(self.fit.form, self.fit.uncentred(self.phi_SP), C, cost, fixed)

    def parameters(self, level: float = 0.95) -> dict[str, Interval]:
        """An interval for every parameter."""
        best = self.fit.parameters
        return {name: Interval.of(best[name], d, level) for name, d in self.draws.items()}

    def optimum(
        self,
        C: float,
        level: float = 0.95,
        cost: Cost | None = None,
        fixed: Mapping[str, float] | None = None,
    ) -> dict[str, Interval]:
        """Intervals for the exponents a and b and for N*, D* and L* of a budget."""
        cost = cost or Cost.of(self.fit.view)
        phi_SP = self.fit.uncentred(np.concatenate([self.fit.phi_P[None], self.phi_SP]))
        best = frontier(self.fit.form, phi_SP, np.asarray([C]), cost, fixed)
        a, b = exponents(self.fit.form, phi_SP, C, cost, fixed)
        values = {"a": a, "b": b, "N": best.N[:, 0], "D": best.D[:, 0], "L": best.L[:, 0]}
        return {name: Interval.of(float(v[0]), v[1:], level) for name, v in values.items()}

    def predict(
        self,
        columns: Mapping[str, float | Array],
        level: float = 0.95,
        noise: bool = True,
        seed: int = 0,
    ) -> tuple[Array, Array, Array]:
        """Loss of runs, by the form's columns, with its interval: estimate, low, high, each (J,).

        `noise`: add residuals of the fit, drawn with replacement and widened by sqrt(I / (I - P)):
        the interval of a run that is trained. Without: that of the law alone.
        """
        fit = self.fit
        given = np.broadcast_arrays(*(np.atleast_1d(columns[name]) for name in fit.form.columns))
        x_KJ = fit.form.features(dict(zip(fit.form.columns, map(np.asarray, given), strict=True)))
        log_loss = fit.form.value_and_jacobian(fit.uncentred(self.phi_SP), x_KJ)[0]
        if noise:
            log_loss = log_loss + _noise(fit, log_loss.shape, np.random.default_rng(seed))
        low, high = percentiles(log_loss, level)
        return fit.predict(**columns), np.exp(low), np.exp(high)

    def findings(self) -> list[Finding]:
        """E that the resamples do not hold: a spread above 10 %."""
        if "E" not in self.draws or "E" in self.fit.pins:
            return []
        spread = Interval.of(self.fit.parameters["E"], self.draws["E"]).log_se
        if spread <= 0.1:
            return []
        return [
            Finding(
                "E_spread",
                "red" if spread > 0.3 else "amber",
                f"E varies by {spread:.0%} between resamples: these runs do not determine the "
                f"irreducible loss. Compare E = 0 and a pinned E by hold-out",
            )
        ]


def _noise(fit: Fit, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    residuals = -fit.residuals[fit.problem.weights[0] > 0]
    rows, free = len(residuals), int(fit.problem.free_P.sum())
    return rng.choice(residuals * np.sqrt(rows / (rows - free)), shape)


def bootstrap(fit: Fit, resamples: int = 4000, *, cluster: str = "", seed: int = 0) -> Bootstrap:
    """Resample the runs of a fit, or with `cluster` whole groups that share a column's value.

    Raises:
        ValueError: fewer than 5 clusters: their draws say nothing.
    """
    rows = len(fit.view)
    labels = np.arange(rows) if not cluster else _labels(fit, cluster)
    if len(np.unique(labels)) < 5:
        raise ValueError(
            f"{len(np.unique(labels))} clusters by {cluster or 'row'}: at least 5, or cluster='' "
            f"for single rows"
        )
    weights = resample_weights(labels, resamples, np.random.default_rng(seed))
    return Bootstrap(fit, refit(fit, weights))


def _labels(fit: Fit, cluster: str) -> Labels:
    if cluster in ("N", "D", "C"):
        values = fit.view.column(cluster)
    else:
        values = fit.view.table.columns[cluster]
    return np.unique(values, return_inverse=True)[1].reshape(-1)
