"""Approach 3: one law for all runs, fitted to the logarithm of their loss (Hoffmann et al. 2022).

    minimise  sum_i H_delta(ln L(N_i, D_i) - ln L_i)     from many starts, N and D centred

delta = 1e-3 is Hoffmann's. On residuals of half a per cent that is all but the least absolute
deviation (delta = 0), which is what the refit of Besiroglu et al. 2024 printed: both are right
answers to different questions, so the report says which. Legend as in `solve.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from nn import names
from nn.analysis.scaling_laws.effective import Precision, Repeated
from nn.analysis.scaling_laws.experts import MixtureOfExperts, Routed
from nn.analysis.scaling_laws.findings import Finding
from nn.analysis.scaling_laws.forms import LEAST_E, Chinchilla, Form, Kaplan, Power, SharedExponent
from nn.analysis.scaling_laws.identify import Design, Sensitivity
from nn.analysis.scaling_laws.solve import Problems, huber, solve
from nn.analysis.scaling_laws.table import Array, Table, View

FORMS: dict[str, Form] = {
    form.name: form
    for form in (
        Chinchilla(),
        SharedExponent(),
        Kaplan(),
        Power(),
        Repeated(),
        Precision(),
        MixtureOfExperts(),
        Routed(),
    )
}


@dataclass(frozen=True)
class Fit:
    """A fitted law, and how the optimiser got there."""

    form: Form
    view: View
    problem: Problems  # the one problem, S = 1
    phi_P: Array  # of centred features
    centre_K: Array
    pins: Mapping[str, float]
    objective: float
    starts: int
    share: float  # of the starts that reached the optimum
    converged: bool
    moved: bool  # the best start is not its own result
    sensitivity: Sensitivity
    findings: tuple[Finding, ...]

    @property
    def delta(self) -> float:
        """Huber's delta; 0 is the least absolute deviation."""
        return float(self.problem.delta[0])

    @property
    def parameters(self) -> dict[str, float]:
        """By name, at full precision."""
        return {name: float(v) for name, v in self.natural(self.phi_P).items()}

    def natural(self, phi_SP: Array) -> dict[str, Array]:
        """Parameters by name from phi of centred features: of a bootstrap, say."""
        return self.form.natural(self.uncentred(phi_SP))

    def uncentred(self, phi_SP: Array) -> Array:
        """phi of the features as they are."""
        return self.form.shear(phi_SP, self.centre_K)

    @property
    def residuals(self) -> Array:
        """ln L (fitted) - ln L (run), (I,)."""
        value = self.form.value_and_jacobian(self.phi_P[None], self.problem.x_KI)[0][0]
        return value - self.problem.log_loss[0]

    @property
    def design(self) -> Design:
        """How N and D of the runs lie to each other."""
        return Design.of(self.view)

    def report(self) -> dict[str, Any]:
        """All of it in plain numbers and words at full precision, to be written as JSON."""
        return {
            "form": self.form.name,
            "equation": self.form.equation,
            "convention": self.view.convention,
            "rows": len(self.view),
            "excluded": [asdict(run) for run in self.view.table.excluded],
            "parameters": self.parameters,
            "pins": dict(self.pins),
            "delta": self.delta,
            "objective": self.objective,
            "starts": self.starts,
            "share_at_optimum": self.share,
            "moved": self.moved,
            "converged": self.converged,
            "design": asdict(self.design),
            "sensitivity": asdict(self.sensitivity),
            "findings": [asdict(finding) for finding in self.findings],
        }

    def predict(self, **columns: float | Array) -> Array:
        """L, (I,), of runs given by the columns of the form: `fit.predict(N=1e9, D=2e10)`."""
        return self.form.loss(self.parameters, **columns)


def fit_parametric(
    data: Table | View,
    form: str = "chinchilla",
    *,
    convention: str | None = None,
    delta: float = 1e-3,
    pin: Mapping[str, float] | None = None,
    weights: Array | None = None,
    start: Mapping[str, float] | None = None,
) -> Fit:
    """Fit a form to a table.

    Args:
        data: a Table (with `convention`, see `Table.view`) or a View.
        form: a name out of `FORMS`.
        delta: Huber's; 0 for the least absolute deviation, inf for least squares.
        pin: parameters held fixed, by name: {"E": 0} for a pure power law.
        weights: (rows,), of the terms of the sum; 1 without.
        start: parameters to start from, in place of the grid of starts.
    Raises:
        ValueError: an unknown form or pin, a negative delta, too few rows for the free parameters,
            or a design in which N and D do not vary apart (see `identify.py`).
    """
    law: Form = names.lookup("form", form, FORMS)
    view = data.view(convention) if isinstance(data, Table) else data
    pins = dict(pin or {})
    problem, centre_K, fixed_P = _problem(law, view, delta, pins, weights)
    starts = law.starts(problem.x_KI, problem.log_loss[0])
    if start is not None:
        starts = law.shear(law.phi(start), centre_K, -1.0)[None]
    starts[:, ~problem.free_P] = fixed_P[~problem.free_P]
    starts = np.unique(starts, axis=0)
    solved = solve(problem, starts)
    best = int(np.argmin(solved.objective))
    lowest = float(solved.objective[best])
    floor = float(problem.weights.sum() * huber(np.asarray(1e-8), np.asarray(delta)))
    reached = solved.objective <= lowest * (1 + 1e-6) + floor
    phi = solved.phi_SP[best]
    jacobian = law.value_and_jacobian(phi[None], problem.x_KI)[1][0]
    fit = Fit(
        form=law,
        view=view,
        problem=problem,
        phi_P=phi,
        centre_K=centre_K,
        pins=pins,
        objective=lowest,
        starts=len(starts),
        share=float(reached.mean()),
        converged=bool(solved.converged[best]),
        moved=not np.allclose(phi[problem.free_P], starts[best][problem.free_P], 1e-9, 1e-9),
        sensitivity=Sensitivity.of(jacobian, problem.weights[0], problem.free_P),
        findings=(),
    )
    return replace(fit, findings=tuple(_findings(fit)))


def _problem(
    law: Form, view: View, delta: float, pins: Mapping[str, float], weights: Array | None
) -> tuple[Problems, Array, Array]:
    """The problem with centred features, their centre, and the values of the pinned coordinates."""
    if not delta >= 0:
        raise ValueError(f"delta = {delta}: 0 (least absolute deviation) or more; usual: 0.001")
    for name, value in pins.items():
        if name not in law.pinnable:
            raise names.unknown(f"pin for form {law.name!r}", name, law.pinnable)
        if name in law.logs and not value >= 0:
            raise ValueError(f"pin {name} = {value}: 0 or more (0 takes its term out of the law)")
    free = np.asarray([name not in pins for name in law.parameters])
    if len(view) <= free.sum():
        raise ValueError(
            f"{len(view)} rows for {free.sum()} free parameters of form {law.name!r}: at least "
            f"{free.sum() + 1}, or pin some of {', '.join(law.pinnable)}"
        )
    if {"N", "D"} <= set(law.columns) and not set(pins) - {"E"}:
        Design.of(view).refuse()
    features = law.features({name: view.column(name) for name in law.columns})
    if not np.isfinite(features).all():
        raise ValueError(
            f"form {law.name!r} reads {', '.join(law.columns)} and some rows lack one: filter them "
            f"out first, or choose a form that needs less"
        )
    centre = np.zeros(len(features))
    for _, _, feature in law.shears:
        centre[feature] = features[feature].mean()
    for row, _, feature in law.shears:
        if row in pins:  # a pinned coefficient stays a coordinate of its own
            centre[feature] = 0.0
    fixed = np.zeros(len(free))
    for name, value in pins.items():
        with np.errstate(divide="ignore"):
            coordinate = np.log(value) if name in law.logs else value
        fixed[law.parameters.index(name)] = coordinate
    log_loss = np.log(view.L)
    low, high = law.bounds(log_loss)
    given = np.ones(len(view)) if weights is None else np.asarray(weights, np.float64)
    problem = Problems(
        form=law,
        x_KI=features - centre[:, None],
        log_loss=log_loss[None],
        weights=given[None],
        delta=np.asarray([delta], np.float64),
        low_P=low,
        high_P=high,
        free_P=free,
    )
    return problem, centre, fixed


def _findings(fit: Fit) -> list[Finding]:
    found = []
    if not fit.moved and fit.objective > 0:
        found.append(
            Finding("start", "red", "the optimiser returned its start: the fit did not happen")
        )
    if fit.share < 0.9:
        found.append(
            Finding(
                "starts",
                "red" if fit.share < 0.5 else "amber",
                f"{fit.share:.0%} of {fit.starts} starts reached the best optimum: there are more",
            )
        )
    if not fit.converged:
        found.append(Finding("converged", "red", "the optimiser ran out of steps"))
    s = fit.sensitivity
    if s.rank < s.parameters or s.condition > 1e5:
        found.append(
            Finding(
                "rank",
                "red" if s.rank < s.parameters else "amber",
                f"the runs tell {s.rank} of {s.parameters} parameters apart (condition number of "
                f"the derivatives {s.condition:.2g})",
            )
        )
    return found + _bound_findings(fit)


def _bound_findings(fit: Fit) -> list[Finding]:
    found = []
    values, lowest = fit.parameters, float(fit.view.L.min())
    if "E" in values and "E" not in fit.pins:
        if values["E"] >= lowest:
            found.append(
                Finding(
                    "E_above_loss",
                    "red",
                    f"E = {values['E']:.4f} is not below the lowest loss {lowest:.4f}: an "
                    f"irreducible loss that a run has undercut. Pin E, or take out the runs that "
                    f"bend the law there",
                )
            )
        elif values["E"] < 1.01 * LEAST_E * lowest:
            found.append(
                Finding(
                    "E_at_bound",
                    "amber",
                    f"E = {values['E']:.2g} fell to its bound: these runs show no irreducible "
                    f"loss. Compare with pin={{'E': 0}} by hold-out",
                )
            )
    p = fit.problem
    for i, name in enumerate(fit.form.parameters):
        at_bound = fit.phi_P[i] <= p.low_P[i] or fit.phi_P[i] >= p.high_P[i]
        if p.free_P[i] and at_bound and name != "E":
            found.append(
                Finding("bound", "red", f"{name} = {values[name]:.4g} is at its bound: not found")
            )
    return found
