"""Approach 2: its known bias to the printed digit, and the minima that must not be believed."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

from nn.analysis.scaling_laws import Table, fit_isoflop, fit_parametric
from nn.analysis.scaling_laws.isoflop import parabola_bias
from nn.analysis.scaling_laws.table import Array
from tests.nn.analysis.scaling_laws import synthetic

# Exponents -> error of D*(1e24), in per cent, of grids of +-2x, 4x, 8x, 16x (15 points, 1e17-1e21).
BIAS = {
    (0.34, 0.28): (-0.33, -1.30, -2.90, -5.10),
    (0.465, 0.155): (-1.67, -6.50, -13.91, -23.12),
    (0.31, 0.31): (0.0, 0.0, 0.0, 0.0),
}


@pytest.mark.parametrize("shape", BIAS)
@pytest.mark.parametrize("span", [2, 4, 8, 16])
def test_the_bias_of_parabolas(shape: tuple[float, float], span: int) -> None:
    law = {**synthetic.LAW, "alpha": shape[0], "beta": shape[1]}
    table = Table.of(synthetic.isoflops(law, span=span, points=15))
    fit = fit_isoflop(table, window=float("inf"))
    true = 1e24 / 6 / synthetic.optimum(law, 1e24)
    printed = BIAS[shape][(2, 4, 8, 16).index(span)]
    assert round(100 * (float(fit.D(1e24)) / true - 1), 2) == pytest.approx(printed, abs=1e-9)
    assert 100 * parabola_bias(*shape, span) == pytest.approx(printed, abs=0.006)
    # The exponents are exact, and so is what the bias leaves: all of it lies in the intercept.
    assert fit.b == pytest.approx(shape[0] / sum(shape), abs=1e-9)
    assert fit.a == pytest.approx(shape[1] / sum(shape), abs=1e-9)


def test_the_printed_intercept() -> None:
    table = Table.of(synthetic.isoflops(span=16, points=15))
    assert fit_isoflop(table, window=np.inf).log_kd / np.log(10) == pytest.approx(
        -0.578092, abs=1e-6
    )
    true = np.log10(1 / 6 / synthetic.optimum(synthetic.LAW, 1.0))
    assert true == pytest.approx(-0.555357, abs=1e-6)


def test_the_bound_covers_the_bias_that_it_bounds() -> None:
    fit = fit_isoflop(Table.of(synthetic.isoflops(span=8, points=15)))
    assert 0.029 < fit.bias < 0.033  # +-8x on Chinchilla's shape: 2.9 %
    assert fit_isoflop(Table.of(synthetic.isoflops(span=16, points=15)), window=4).bias < 0.016
    wide = fit_isoflop(Table.of(synthetic.isoflops(span=16, points=15)), window=np.inf)
    assert [f.code for f in wide.findings if f.code == "parabola_bias"] == ["parabola_bias"]


def spoiled(change: Callable[[Array, Array], Array]) -> Table:
    """Five budgets, the third changed by a function of its (sorted) sizes and losses."""
    columns = synthetic.isoflops(points=9)
    at = slice(18, 27)
    columns["L"][at] = change(np.log(columns["N"][at]), columns["L"][at])
    return Table.of(columns)


def test_minima_that_were_not_seen_are_left_out_with_the_reason() -> None:
    for change, reason in (
        (lambda n, L: 3.0 + 0.1 * (n - n[0]), "that of the smallest model.*add smaller models"),
        (lambda n, L: 3.0 - 0.1 * (n - n[0]), "that of the largest model.*add larger models"),
        (lambda n, L: 3.0 - 0.1 * (n - n[4]) ** 2 - 0.45 * (n == n[4]), "concave"),
        (lambda n, L: 3.0 + 0.1 * (n - n[1] + 0.1) ** 2, "1 points below and 5 above.*least 2"),
    ):
        fit = fit_isoflop(spoiled(change))
        assert len(fit.minima) == 4
        (rejected,) = fit.rejected
        assert rejected.run == "budget 1e+19"
        assert re.search(reason, rejected.reason), rejected.reason
        assert fit.a == pytest.approx(0.28 / 0.62, abs=1e-6)  # the others are untouched
        assert [f.code for f in fit.findings] == ["budget_rejected"]


def test_fewer_than_five_sizes_are_refused() -> None:
    table = Table.of(synthetic.isoflops(points=4))
    with pytest.raises(ValueError, match="0 budgets with a minimum.*3 sizes within.*at least 5"):
        fit_isoflop(table)
    few = Table.of(synthetic.isoflops(points=9, span=64))  # a factor of 2.8 from size to size
    with pytest.raises(ValueError, match="1 sizes within a factor of 2 of the lowest"):
        fit_isoflop(few, window=2.0)


def test_three_ways_to_the_minimum() -> None:
    table = synthetic.noisy(synthetic.isoflops(points=11, span=6), 5e-4)
    law = fit_parametric(table)
    fit = fit_isoflop(table, parametric=law)
    for m in fit.minima:
        true = synthetic.optimum(synthetic.LAW, m.C)
        assert pytest.approx(true, rel=0.1) == m.N
        assert m.akima_N == pytest.approx(true, rel=0.25)
        assert m.parametric_N == pytest.approx(true, rel=0.05)
        assert pytest.approx(m.C / 6 / m.N, rel=1e-9) == m.D
        assert np.nanstd(m.draws) < 0.1
    assert abs(fit.a - 0.28 / 0.62) < 3 * fit.a_se
    assert fit.a_se < 0.02
    grid = fit.grid(1e22, points=5, span=4)
    assert grid[2] == pytest.approx(float(fit.N(1e22))) and grid[4] / grid[0] == pytest.approx(16)


def test_a_minimum_elsewhere_by_the_spline_is_reported() -> None:
    def dent(n: Array, L: Array) -> Array:
        return 3.0 + 0.05 * (n - n[4]) ** 2 - 0.2 * (n == n[6])

    assert "minimum_differs" in [f.code for f in fit_isoflop(spoiled(dent)).findings]


def test_two_seeds_of_the_smallest_model_are_still_the_edge() -> None:
    columns = synthetic.isoflops(points=9)
    at = slice(18, 27)
    columns["L"][at] = 3.0 + 0.1 * (np.log(columns["N"][at] / columns["N"][18]))
    again = {name: np.append(values, values[18]) for name, values in columns.items()}
    again["L"][18] += 0.001
    (rejected,) = fit_isoflop(Table.of(again)).rejected
    assert "smallest model" in rejected.reason


def test_the_error_of_the_exponent_is_its_scatter() -> None:
    """Standard errors, and intervals of N*, against the spread over tables drawn anew."""
    fits = [
        fit_isoflop(synthetic.noisy(synthetic.isoflops(points=9), 2e-3, seed)) for seed in range(40)
    ]
    scatter = np.std([fit.a for fit in fits])
    assert np.mean([fit.a_se for fit in fits]) == pytest.approx(scatter, rel=0.35)
    bounds = np.concatenate([fit.interval(1e23, 0.8) for fit in fits], axis=1)
    middle = np.median([float(fit.N(1e23)) for fit in fits])  # the parabola's bias left in
    assert 0.6 <= ((bounds[0] <= middle) & (middle <= bounds[1])).mean() <= 0.95
