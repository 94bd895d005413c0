"""Approach 2: a parabola through the loss of every budget, and a power law through the minima.

For each budget C the loss is fitted by a quadratic in ln N; its vertex is N*(C), and
    ln N* = ln k + a ln C,   ln D* = ln k' + b ln C        (Hoffmann et al. 2022, section 3.2)

A budget counts only if its minimum was seen: at least five points in the window about the lowest
loss, positive curvature, a vertex between the points with two of them on each side. What fails is
left out, with its reason, never extrapolated. Each vertex is checked against Akima's spline through
the same points (and against the slice of a parametric law, when one is given).

Where alpha and beta differ, slices are not parabolas: their vertex is shifted by an amount that no
number of runs averages away (`parabola_bias`). The shift is the same at every budget, so that a and
b are right and k is not; it is printed as a bound of the extrapolated N* and D*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import Akima1DInterpolator

from nn.analysis.scaling_laws.findings import Finding
from nn.analysis.scaling_laws.optimum import Cost, optimal
from nn.analysis.scaling_laws.parametric import Fit
from nn.analysis.scaling_laws.table import Array, Excluded, Labels, Table, View

MIN_POINTS = 5
MIN_BESIDE = 2  # points on each side of the vertex
RESAMPLES = 1000
CHINCHILLA_SHAPE = (0.34, 0.28)  # alpha and beta of the bias bound, where no fit gives others


@dataclass(frozen=True)
class Minimum:
    """The vertex of one budget. draws, loss_draws: ln N* and L of resampled residuals; NaN where
    none was found."""

    C: float
    N: float
    D: float
    L: float
    points: int
    span: float  # from the vertex to the farther end of the window, as a factor
    akima_N: float
    parametric_N: float  # NaN without a parametric fit
    draws: Array
    loss_draws: Array


@dataclass(frozen=True)
class IsoFlop:
    """Minima of the budgets that were accepted, those that were not, and the power laws."""

    view: View
    minima: tuple[Minimum, ...]
    rejected: tuple[Excluded, ...]
    a: float
    log_k: float
    b: float
    log_kd: float
    a_se: float
    bias: float  # bound of the relative error of N* and D* that the parabola itself makes
    findings: tuple[Finding, ...]

    def N(self, C: float | Array) -> Array:
        """N* of a budget by the power law; recentre the next budget's grid on it."""
        return np.exp(self.log_k + self.a * np.log(np.asarray(C, np.float64)))

    def D(self, C: float | Array) -> Array:
        """D* of a budget by the power law."""
        return np.exp(self.log_kd + self.b * np.log(np.asarray(C, np.float64)))

    def interval(self, C: float | Array, level: float = 0.95) -> tuple[Array, Array]:
        """Bounds of N* of budgets: power laws through the minima of resampled residuals.

        Noise alone: the bias of the parabola (`bias`) comes on top.
        """
        log_C = np.log([m.C for m in self.minima])
        lines = np.polyfit(log_C, _whole(self.minima), 1)
        at = np.atleast_1d(np.log(np.asarray(C, np.float64)))
        edges = [50 * (1 - level), 50 * (1 + level)]
        low, high = np.percentile(lines[0][:, None] * at + lines[1][:, None], edges, axis=0)
        return np.exp(low), np.exp(high)

    def grid(self, C: float, points: int = 7, span: float = 4.0) -> Array:
        """Sizes for the next budget: log-spaced from N*/span to N* span."""
        return float(self.N(C)) * np.exp(np.linspace(-np.log(span), np.log(span), points))


def fit_isoflop(
    data: Table | View,
    *,
    convention: str | None = None,
    window: float = 8.0,
    parametric: Fit | None = None,
    seed: int = 0,
) -> IsoFlop:
    """Fit approach 2 to a table whose rows share budgets (see `View.budgets`).

    Args:
        window: points within this factor of the lowest-loss size are used; inf for all.
        parametric: a fit of approach 3: its minima stand beside, its exponents set the bias bound.
    Raises:
        ValueError: fewer than two budgets with a minimum, with the reason of every other.
    """
    if not window > 1:
        raise ValueError(f"window = {window}: a factor above 1, usual: 4 to 8; inf for all points")
    view = data.view(convention) if isinstance(data, Table) else data
    budgets, rng = view.budgets(), np.random.default_rng(seed)
    minima, rejected = [], []
    for budget in range(budgets.max() + 1):
        rows = np.flatnonzero(budgets == budget)
        C = float(np.exp(np.log(view.C[rows]).mean()))
        found = _minimum(view, rows, C, window, parametric, rng)
        if isinstance(found, Minimum):
            minima.append(found)
        else:
            rejected.append(Excluded(f"budget {C:.3g}", found))
    if len(minima) < 2:
        reasons = "; ".join(f"{r.run}: {r.reason}" for r in rejected)
        raise ValueError(f"{len(minima)} budgets with a minimum, at least 2 are needed. {reasons}")
    log_C, log_N, log_D = (np.log([getattr(m, f) for m in minima]) for f in "CND")
    a, log_k = np.polyfit(log_C, log_N, 1)
    b, log_kd = np.polyfit(log_C, log_D, 1)
    whole = _whole(minima)
    slopes = np.polyfit(log_C, whole, 1)[0] if whole.shape[1] > 1 else np.full(2, np.nan)
    law = parametric.parameters if parametric else {}
    alpha = law.get("alpha", CHINCHILLA_SHAPE[0])
    beta = law.get("beta", law.get("alpha", CHINCHILLA_SHAPE[1]))
    spans, points = [m.span for m in minima], [m.points for m in minima]
    bias = max(abs(parabola_bias(alpha, beta, s, n)) for s, n in zip(spans, points, strict=True))
    return IsoFlop(
        view=view,
        minima=tuple(minima),
        rejected=tuple(rejected),
        a=float(a),
        log_k=float(log_k),
        b=float(b),
        log_kd=float(log_kd),
        a_se=float(slopes.std(ddof=1)),
        bias=bias,
        findings=tuple(_findings(minima, rejected, bias)),
    )


def _whole(minima: Sequence[Minimum]) -> Array:
    """(budgets, S): ln N* of the resamples in which every budget had a minimum."""
    draws = np.stack([m.draws for m in minima])
    return draws[:, np.isfinite(draws).all(axis=0)]


def _minimum(
    view: View,
    rows: Labels,
    C: float,
    window: float,
    parametric: Fit | None,
    rng: np.random.Generator,
) -> Minimum | str:
    """The vertex of one budget, or why it has none."""
    rows = rows[np.argsort(view.N[rows], kind="stable")]
    n, L = np.log(view.N[rows]), view.L[rows]
    near = np.abs(n - n[np.argmin(L)]) <= np.log(window) * (1 + 1e-9)
    rows, n, L = rows[near], n[near], L[near]
    unseen = _unseen(n, L, window)
    if unseen:
        return unseen
    middle = n.mean()
    design = np.vander(n - middle, 3)
    solver = np.linalg.pinv(design)
    curvature, slope, level = solver @ L
    if curvature <= 0:
        return f"the parabola is concave (curvature {curvature:.3g}): noise exceeds the dip"
    vertex = middle - slope / (2 * curvature)
    beside = int((n < vertex).sum()), int((n > vertex).sum())
    if min(beside) < MIN_BESIDE:
        return (
            f"{beside[0]} points below and {beside[1]} above the vertex {np.exp(vertex):.3g}: at "
            f"least {MIN_BESIDE} on each side"
        )
    # ln D along the budget: a straight line for 6ND, nearly one for exact FLOPs.
    to_D = np.polyfit(n - middle, np.log(view.D[rows]), 2)
    fitted = design @ (curvature, slope, level)
    scale = np.sqrt(len(n) / max(len(n) - 3, 1))
    noise = rng.choice((L - fitted) * scale, (RESAMPLES, len(n)))
    c2, c1, c0 = solver @ (fitted + noise).T
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = np.where(c2 > 0, middle - c1 / (2 * c2), np.nan)
    draws[(draws < n[0]) | (draws > n[-1])] = np.nan
    reached = float(optimal(parametric, C=C).N[0]) if parametric else float("nan")
    return Minimum(
        C=C,
        N=float(np.exp(vertex)),
        D=float(np.exp(np.polyval(to_D, vertex - middle))),
        L=float(level - slope**2 / (4 * curvature)),
        points=len(n),
        span=float(np.exp(max(vertex - n[0], n[-1] - vertex))),
        akima_N=_akima(n, L),
        parametric_N=reached,
        draws=draws,
        loss_draws=np.where(np.isfinite(draws), c0 - c1**2 / (4 * c2), np.nan),
    )


def _unseen(n: Array, L: Array, window: float) -> str:
    """Why sizes n = ln N (rising) with losses L can not show a minimum; "" if they can."""
    sizes = len(np.unique(n))
    if sizes < MIN_POINTS:
        return (
            f"{sizes} sizes within a factor of {window:g} of the lowest loss: at least {MIN_POINTS}"
        )
    best = n[np.argmin(L)]
    if n[0] < best < n[-1]:
        return ""
    which, way = ("smallest", "smaller") if best == n[0] else ("largest", "larger")
    return (
        f"the lowest loss is that of the {which} model, {np.exp(best):.3g}: the minimum was not "
        f"seen; add {way} models"
    )


def _akima(n: Array, L: Array) -> float:
    """The size at the lowest point of Akima's spline (repeated sizes by their mean loss)."""
    sizes, index = np.unique(n, return_inverse=True)
    mean = np.bincount(index.reshape(-1), L) / np.bincount(index.reshape(-1))
    dense = np.linspace(sizes[0], sizes[-1], 2001)
    return float(np.exp(dense[np.argmin(Akima1DInterpolator(sizes, mean)(dense))]))


def parabola_bias(alpha: float, beta: float, span: float, points: int = 15) -> float:
    """Relative error of D* (and, with the other sign, of N*) that the parabola makes without noise.

    For a grid of `points` sizes, log-spaced from N*/span to N* span. Depends on nothing else: E and
    C drop out, A and B only place the optimum.
    """
    n = np.linspace(-np.log(span), np.log(span), points)
    slice_ = beta * np.exp(-alpha * n) + alpha * np.exp(beta * n)
    curvature, slope, _ = np.polyfit(n, slice_, 2)
    return float(np.expm1(slope / (2 * curvature)))


def _findings(
    minima: Sequence[Minimum], rejected: Sequence[Excluded], bias: float
) -> list[Finding]:
    found = [Finding("budget_rejected", "amber", f"{r.run}: {r.reason}") for r in rejected]
    for m in minima:
        for name, other in (("Akima's spline", m.akima_N), ("the parametric law", m.parametric_N)):
            if abs(np.log(other / m.N)) > np.log(1.25):
                found.append(
                    Finding(
                        "minimum_differs",
                        "amber",
                        f"budget {m.C:.3g}: the parabola's minimum {m.N:.3g} and that of {name}, "
                        f"{other:.3g}, differ by more than a quarter: look at the curve",
                    )
                )
    if bias > 0.05:
        found.append(
            Finding(
                "parabola_bias",
                "amber",
                f"a parabola over this window misplaces N* and D* by up to {bias:.1%} even without "
                f"noise: narrow the window (4x), or trust the parametric fit",
            )
        )
    return found


def slices(parametric: Fit, C: Sequence[float], span: float = 8.0, points: int = 65) -> list[Array]:
    """Curves of the parametric law along budgets, to draw: per budget (2, points) of N and L."""
    cost = Cost.of(parametric.view)
    curves = []
    for budget in C:
        best = float(optimal(parametric, C=budget, cost=cost).N[0])
        N = best * np.exp(np.linspace(-np.log(span), np.log(span), points))
        L = parametric.predict(N=N, D=cost.tokens(N, np.asarray(budget)))
        curves.append(np.stack([N, L]))
    return curves
