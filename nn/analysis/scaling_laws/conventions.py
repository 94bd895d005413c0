"""The same runs under every way of counting parameters, and whether two approaches agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nn.analysis.scaling_laws.findings import Finding
from nn.analysis.scaling_laws.isoflop import IsoFlop, fit_isoflop
from nn.analysis.scaling_laws.optimum import Cost, exponents
from nn.analysis.scaling_laws.parametric import Fit, fit_parametric
from nn.analysis.scaling_laws.resampling import Bootstrap, bootstrap
from nn.analysis.scaling_laws.table import Table


@dataclass(frozen=True)
class Side:
    """One convention: approach 3 with its exponent a, and approach 2 where it could be fitted."""

    convention: str
    fit: Fit
    boot: Bootstrap
    a: float
    a_se: float
    isoflop: IsoFlop | None
    why_no_isoflop: str
    findings: tuple[Finding, ...]


def side_by_side(table: Table, resamples: int = 1000, **options: Any) -> dict[str, Side]:
    """Both approaches under each convention that the table knows; `options` as `fit_parametric`'s.

    C is exact where the table has it, so that the exponents differ by the count alone.
    """
    sides = {}
    for convention in table.conventions():
        fit = fit_parametric(table, convention=convention, **options)
        boot = bootstrap(fit, resamples)
        middle = float(np.exp(np.log(fit.view.C).mean()))
        phi_SP = fit.uncentred(np.concatenate([fit.phi_P[None], boot.phi_SP]))
        a, _ = exponents(fit.form, phi_SP, middle, Cost.of(fit.view))
        a_se, isoflop, why, findings = float(a[1:].std(ddof=1)), None, "", []
        try:
            isoflop = fit_isoflop(fit.view, parametric=fit)
        except ValueError as error:
            why = str(error)
        else:
            findings = agreement(isoflop.a, isoflop.a_se, float(a[0]), a_se)
        sides[convention] = Side(
            convention, fit, boot, float(a[0]), a_se, isoflop, why, tuple(findings)
        )
    return sides


def agreement(a2: float, a2_se: float, a3: float, a3_se: float) -> list[Finding]:
    """Red when the exponents of approaches 2 and 3 differ by more than two standard errors."""
    se = float(np.hypot(np.nan_to_num(a2_se), np.nan_to_num(a3_se)))
    if abs(a2 - a3) <= 2 * se:
        return []
    return [
        Finding(
            "approaches_differ",
            "red",
            f"the exponent of N* is {a2:.3f} by IsoFLOP parabolas and {a3:.3f} by the parametric "
            f"law, {abs(a2 - a3) / se if se else float('inf'):.1f} standard errors apart: one of "
            f"them is wrong about these runs; do not extrapolate either",
        )
    ]
