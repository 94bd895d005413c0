"""Runs of a known law: what a fit should find again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nn.analysis.scaling_laws import FORMS, Table
from nn.analysis.scaling_laws.table import Array

LAW = {"E": 1.69, "A": 406.4, "alpha": 0.34, "B": 410.7, "beta": 0.28}
BUDGETS = tuple(np.logspace(17, 21, 5))


def optimum(law: Mapping[str, float], C: float) -> float:
    """N* for C = 6ND, from the derivative of the law along the budget."""
    alpha, beta = law["alpha"], law["beta"]
    ratio = alpha * law["A"] / (beta * law["B"])
    return float(ratio ** (1 / (alpha + beta)) * (C / 6) ** (beta / (alpha + beta)))


def isoflops(
    law: Mapping[str, float] = LAW,
    budgets: Sequence[float] = BUDGETS,
    span: float = 8.0,
    points: int = 9,
) -> dict[str, Array]:
    """Columns N, D, C, L (no noise): budgets of sizes log-spaced around the optimum."""
    grid = np.exp(np.linspace(-np.log(span), np.log(span), points))
    N = np.concatenate([optimum(law, C) * grid for C in budgets])
    C = np.repeat(budgets, points)
    return {"N": N, "D": C / (6 * N), "C": C, "L": FORMS["chinchilla"].loss(law, N=N, D=C / 6 / N)}


def noisy(columns: Mapping[str, Array], sigma: float, seed: int = 0) -> Table:
    """A table of these runs with ln L off by a normal error of sigma."""
    rng = np.random.default_rng(seed)
    noise = np.exp(sigma * rng.standard_normal(len(columns["L"])))
    return Table.of({**columns, "L": columns["L"] * noise})


def scattered(rows: int, seed: int, law: Mapping[str, float] = LAW) -> dict[str, Array]:
    """Columns of runs of random size and compute: a table of the shape of Hoffmann's."""
    rng = np.random.default_rng(seed)
    N = np.exp(rng.uniform(np.log(5e7), np.log(1.6e10), rows))
    C = 10 ** rng.uniform(18, 21.7, rows)
    return {"N": N, "D": C / (6 * N), "C": C, "L": FORMS["chinchilla"].loss(law, N=N, D=C / 6 / N)}
