"""Counts of parameters: what they change, and what they must not."""

from __future__ import annotations

import numpy as np
import pytest

from nn.analysis.scaling_laws import Table, agreement, side_by_side
from tests.nn.analysis.scaling_laws import synthetic


def test_exponents_under_every_count() -> None:
    """A constant factor changes nothing; a count that grows as N^1.2 has 1.2 times the exponent."""
    columns = synthetic.isoflops(points=9)
    N = columns.pop("N")
    table = Table.of(
        {**columns, "N_matmul": N, "N_total": 1.3 * N, "N_nonemb": N * (N / 1e12) ** 0.2}
    )
    sides = side_by_side(table, resamples=20)
    a = 0.28 / 0.62
    for name, expected in (("matmul", a), ("total", a), ("non_embedding", 1.2 * a)):
        assert sides[name].a == pytest.approx(expected, rel=1e-4), name
        isoflop = sides[name].isoflop
        assert isoflop is not None and isoflop.a == pytest.approx(expected, rel=1e-3)
    assert sides["total"].fit.view.convention == "total"


def test_a_side_without_minima_says_why() -> None:
    columns = synthetic.scattered(60, 0)
    side = side_by_side(Table.of(columns), resamples=5)["given"]
    assert side.isoflop is None and "budgets with a minimum" in side.why_no_isoflop


def test_approaches_that_disagree_are_red() -> None:
    assert agreement(0.50, 0.02, 0.53, 0.01) == []
    (finding,) = agreement(0.50, 0.01, 0.55, 0.01)
    assert finding.severity == "red" and "3.5 standard errors apart" in finding.message
    assert agreement(0.50, np.nan, 0.60, 0.01) != []
