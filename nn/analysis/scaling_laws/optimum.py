"""From a law to a decision: the best N and D of a budget, the budget of a loss, the price of error.

Compute is C = kappa N^(1 + omega) D. The rule of thumb is kappa = 6, omega = 0; `Cost.of` measures
both from the exact FLOPs of the runs, which is what makes an optimum under a partial count of
parameters (6 N_nonemb D can be a third of the FLOPs) agree with the compute that was spent.

For L = E + A N^-alpha + B D^-beta (Hoffmann et al. 2022, equation 4, with omega added):
    N* = [alpha A / ((1+omega) beta B)]^(1/s) (C/kappa)^(beta/s),   s = alpha + (1+omega) beta
Every other form is minimised along the budget by golden section (ln L is convex in ln N there).

Legend: S sets of parameters, J budgets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from nn.analysis.scaling_laws.forms import Chinchilla, Form, SharedExponent
from nn.analysis.scaling_laws.parametric import Fit
from nn.analysis.scaling_laws.table import Array, View

_GOLDEN = (np.sqrt(5.0) - 1) / 2


@dataclass(frozen=True)
class Cost:
    """C = kappa N^(1 + omega) D, and by how much the runs it was measured on depart from it."""

    kappa: float = 6.0
    omega: float = 0.0
    error: float = 0.0  # largest, relative

    @classmethod
    def of(cls, view: View) -> Cost:
        """From the runs' exact FLOPs; 6ND where a table has none."""
        if not view.exact_flops:
            return cls()
        n, per_token = np.log(view.N), np.log(view.C / view.D)
        if np.ptp(n) < 1e-9:
            return cls(float(np.exp((per_token - n).mean())))
        slope, level = np.polyfit(n, per_token, 1)
        error = np.abs(np.expm1(level + slope * n - per_token)).max()
        return cls(float(np.exp(level)), float(slope - 1), float(error))

    def flops(self, N: Array, D: Array) -> Array:
        """Training FLOPs."""
        return self.kappa * N ** (1 + self.omega) * D

    def tokens(self, N: Array, C: Array) -> Array:
        """Tokens that a budget buys for a size."""
        return C / (self.kappa * N ** (1 + self.omega))


@dataclass(frozen=True)
class Optimum:
    """The best allocation of a budget: sizes and tokens, and the loss that they should reach."""

    C: Array
    N: Array
    D: Array
    L: Array

    @property
    def tokens_per_parameter(self) -> Array:
        """D / N."""
        return self.D / self.N


def frontier(
    form: Form, phi_SP: Array, C: Array, cost: Cost, fixed: Mapping[str, float] | None = None
) -> Optimum:
    """The optimum of each budget, (J,), for each set of parameters: fields are (S, J).

    `fixed`: what else the form reads, such as unique_tokens or granularity.

    Raises:
        ValueError: a form without N and D, or a column of the form that `fixed` lacks.
    """
    if not {"N", "D"} <= set(form.columns):
        raise ValueError(f"form {form.name!r} ({form.equation}) says nothing about N and D apart")
    others = dict(fixed or {})
    missing = set(form.columns) - {"N", "D"} - set(others)
    if missing:
        raise ValueError(f"form {form.name!r} also reads {', '.join(sorted(missing))}: give them")
    C_SJ = np.broadcast_to(np.asarray(C, np.float64), (len(phi_SP), len(C)))

    def loss(n_SJ: Array) -> Array:
        columns = {"N": np.exp(n_SJ), "D": cost.tokens(np.exp(n_SJ), C_SJ)}
        columns |= {name: np.full(n_SJ.shape, value) for name, value in others.items()}
        return form.value_and_jacobian(phi_SP, form.features(columns))[0]

    if isinstance(form, Chinchilla | SharedExponent) and set(form.columns) == {"N", "D"}:
        n_SJ = _closed(form.natural(phi_SP), C_SJ, cost)
    else:
        high = np.log(C_SJ / cost.kappa) / (1 + cost.omega)  # one token
        n_SJ = _golden_section(loss, np.zeros_like(high), high)
    N = np.exp(n_SJ)
    return Optimum(C_SJ, N, cost.tokens(N, C_SJ), np.exp(loss(n_SJ)))


def _closed(natural: Mapping[str, Array], C_SJ: Array, cost: Cost) -> Array:
    """ln N*, (S, J), by the equation of the file's head."""
    p = {name: values[:, None] for name, values in natural.items()}
    alpha, beta = p["alpha"], p.get("beta", p["alpha"])
    steep = (1 + cost.omega) * beta
    ratio = np.log(alpha * p["A"]) - np.log(steep * p["B"])
    return (ratio + beta * np.log(C_SJ / cost.kappa)) / (alpha + steep)


def _golden_section(function: Callable[[Array], Array], low: Array, high: Array) -> Array:
    """Where a function of arrays is least between low and high, element by element."""
    width = high - low
    left, right = high - _GOLDEN * width, low + _GOLDEN * width
    f_left, f_right = function(left), function(right)
    for _ in range(75):
        lower = f_left < f_right
        high, low = np.where(lower, right, high), np.where(lower, low, left)
        width = high - low
        inner = np.where(lower, high - _GOLDEN * width, low + _GOLDEN * width)
        f_inner = function(inner)
        left, f_left, right, f_right = (
            np.where(lower, inner, right),
            np.where(lower, f_inner, f_right),
            np.where(lower, left, inner),
            np.where(lower, f_left, f_inner),
        )
    return (low + high) / 2


def exponents(
    form: Form, phi_SP: Array, C: float, cost: Cost, fixed: Mapping[str, float] | None = None
) -> tuple[Array, Array]:
    """a and b of N* ~ C^a and D* ~ C^b around a budget, each (S,)."""
    ends = frontier(form, phi_SP, np.asarray([C / 3.0, C * 3.0]), cost, fixed)
    run = np.log(9.0)
    return np.diff(np.log(ends.N))[:, 0] / run, np.diff(np.log(ends.D))[:, 0] / run


def optimal(
    fit: Fit,
    C: float | None = None,
    L: float | None = None,
    cost: Cost | None = None,
    fixed: Mapping[str, float] | None = None,
) -> Optimum:
    """The best allocation of C FLOPs, or the least FLOPs that reach the loss L; fields are (1,).

    Raises:
        ValueError: neither or both given, or a loss that the law says no budget reaches.
    """
    if (C is None) == (L is None):
        raise ValueError(f"give the budget C or the loss L, one of them: C = {C}, L = {L}")
    cost = cost or Cost.of(fit.view)
    budget = float(C) if C is not None else compute_for(fit, float(L or 0.0), cost, fixed)
    phi = fit.uncentred(fit.phi_P)[None]
    best = frontier(fit.form, phi, np.asarray([budget]), cost, fixed)
    return Optimum(best.C[0], best.N[0], best.D[0], best.L[0])


def compute_for(
    fit: Fit, L: float, cost: Cost | None = None, fixed: Mapping[str, float] | None = None
) -> float:
    """The least FLOPs with which the law reaches a loss, by bisection of ln C."""
    cost = cost or Cost.of(fit.view)
    phi = fit.uncentred(fit.phi_P)[None]

    def reached(log_C: float) -> float:
        return float(frontier(fit.form, phi, np.exp([log_C]), cost, fixed).L[0, 0])

    low, high = np.log(cost.kappa) + 1e-3, np.log(1e60)
    if not reached(high) < L < reached(low):
        raise ValueError(
            f"L = {L}: this law reaches losses between {reached(high):.5g} (its E = "
            f"{fit.parameters.get('E', 0.0):.5g}) and {reached(low):.5g}"
        )
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if reached(middle) > L else (low, middle)
    return float(np.exp((low + high) / 2))


@dataclass(frozen=True)
class Deadweight:
    """What a misallocation costs: a run's predicted loss, and the compute that suffices for it."""

    L: float
    C: float
    C_equivalent: float

    @property
    def wasted(self) -> float:
        """Share of the compute that the best allocation would have saved."""
        return 1 - self.C_equivalent / self.C


def deadweight(
    fit: Fit,
    N: float,
    D: float,
    cost: Cost | None = None,
    fixed: Mapping[str, float] | None = None,
) -> Deadweight:
    """The price of training N parameters on D tokens instead of the best allocation."""
    cost = cost or Cost.of(fit.view)
    L = float(fit.predict(N=N, D=D, **(fixed or {}))[0])
    C = float(cost.flops(np.asarray(N), np.asarray(D)))
    best = float(optimal(fit, C=C, cost=cost, fixed=fixed).L[0])
    # At the optimum itself rounding may put L below the best loss.
    return Deadweight(L, C, C if best >= L else compute_for(fit, L, cost, fixed))


def best_of(
    fit: Fit,
    N: Array,
    flops_per_token: Array,
    C: float,
    fixed: Mapping[str, float] | None = None,
) -> tuple[int, Array]:
    """Among the models that can be built: the index of the best for a budget, and all losses.

    With exact FLOPs per token of each model (J,): no formula for C is assumed.
    """
    D = C / np.asarray(flops_per_token, np.float64)
    L = fit.predict(N=np.asarray(N, np.float64), D=D, **(fixed or {}))
    return int(np.argmin(L)), L
