"""What a run that nobody has trained should reach, and when to stop planning and train it.

A forecast states how far it reaches (`beyond`: times the compute of the largest fitted run) and how
often its kind of interval held on runs that were kept from the fit (`held`): the number that says
whether the 95 % may be believed.

Stop rules: the sweep has said enough when the error on the newest held-out budget was small (at
most 1 %, or twice the noise between seeds) twice running and N* of the target is known to a factor
of 1.5; or when the wrong N* could waste less than 1 % of the target's compute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nn.analysis.scaling_laws.holdout import HeldOut, coverage
from nn.analysis.scaling_laws.optimum import Cost, deadweight, optimal
from nn.analysis.scaling_laws.resampling import Bootstrap, Interval

ERROR = 0.01
FACTOR = 1.5
WASTE = 0.01


@dataclass(frozen=True)
class Forecast:
    """The loss of one run: its interval with the scatter of runs, and that of the law alone."""

    N: float
    D: float
    C: float
    L: float
    low: float
    high: float
    law_low: float
    law_high: float
    level: float
    beyond: float
    held: float  # measured coverage; NaN where nothing could be held out


def forecast(
    boot: Bootstrap,
    N: float,
    D: float,
    *,
    held_out: Sequence[HeldOut] = (),
    level: float = 0.95,
    cost: Cost | None = None,
    fixed: Mapping[str, float] | None = None,
) -> Forecast:
    """The loss of N parameters (in the fit's convention) on D tokens.

    `held_out`: what `leave_future_out` found, for the measured coverage (of 95 % intervals).
    """
    view = boot.fit.view
    cost = cost or Cost.of(view)
    columns = {"N": N, "D": D, **(fixed or {})}
    L, low, high = boot.predict(columns, level)
    _, law_low, law_high = boot.predict(columns, level, noise=False)
    C = float(cost.flops(np.asarray(N), np.asarray(D)))
    return Forecast(
        N=N,
        D=D,
        C=C,
        L=float(L[0]),
        low=float(low[0]),
        high=float(high[0]),
        law_low=float(law_low[0]),
        law_high=float(law_high[0]),
        level=level,
        beyond=C / float(view.C.max()),
        held=coverage(held_out)[0] if held_out else float("nan"),
    )


@dataclass(frozen=True)
class Stop:
    """Whether a sweep may stop, and the sentence that says why (not)."""

    stop: bool
    reason: str


def may_stop(
    boot: Bootstrap,
    held_out: Sequence[HeldOut],
    C: float,
    sigma: float = 0.0,
    fixed: Mapping[str, float] | None = None,
) -> Stop:
    """The stop rules of the file's head for a target budget; `sigma`: of ln L between seeds."""
    N = boot.optimum(C, 0.8, fixed=fixed)["N"]
    waste = max(_waste(boot, C, size, fixed) for size in (N.low, N.high))
    if waste < WASTE:
        return Stop(True, f"the wrong N* would waste {waste:.2%} of {C:.3g} FLOPs at most")
    allowed = max(ERROR, 2 * sigma)
    newest = _newest(held_out)
    errors = ", ".join(f"{error:.2%}" for error in newest) or "none"
    factor = np.sqrt(N.high / N.low)
    steady = len(newest) == 2 and max(newest) <= allowed
    if steady and factor < FACTOR:
        reason = f"held-out errors {errors} (at most {allowed:.2%}), N* within a factor of "
        return Stop(True, reason + f"{factor:.2f}")
    return Stop(
        False,
        f"errors on the two newest held-out budgets: {errors} (needed: two of at most "
        f"{allowed:.2%}); N* within a factor of {factor:.2f} (needed: {FACTOR}); the wrong N* "
        f"could waste {waste:.1%} (needed: {WASTE:.0%})",
    )


def _newest(held_out: Sequence[HeldOut]) -> list[float]:
    """Size of the errors on the budget right after the fitted ones, of the last two stretches."""
    nearest: dict[float, HeldOut] = {}
    for row in held_out:
        if row.trained_to not in nearest or row.C < nearest[row.trained_to].C:
            nearest[row.trained_to] = row
    return [abs(nearest[key].error) for key in sorted(nearest)[-2:]]


def _waste(boot: Bootstrap, C: float, N: float, fixed: Mapping[str, float] | None) -> float:
    """Share of a budget that training N parameters with it would waste."""
    cost = Cost.of(boot.fit.view)
    D = float(cost.tokens(np.asarray(N), np.asarray(C)))
    return deadweight(boot.fit, N, D, cost, fixed).wasted


def allocation(
    boot: Bootstrap, C: float, level: float = 0.95, fixed: Mapping[str, float] | None = None
) -> dict[str, Interval]:
    """N*, D*, tokens per parameter, L* and the exponents of a budget, each with its interval."""
    found = boot.optimum(C, level, fixed=fixed)
    best = optimal(boot.fit, C=C, fixed=fixed)
    draws = boot.frontier(np.asarray([C]), fixed=fixed)
    ratio = float(best.tokens_per_parameter[0])
    return {**found, "D/N": Interval.of(ratio, draws.tokens_per_parameter[:, 0], level)}
