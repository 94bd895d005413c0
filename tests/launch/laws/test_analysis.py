"""Which law forecasts the loss, and which one says how a budget is spent."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from launch.laws import analysis
from launch.laws.analysis import Analysis
from nn.analysis.scaling_laws.table import Table


@pytest.fixture(scope="module")
def made() -> Analysis:
    rows = []
    for C in (1e17, 3e17, 1e18, 3e18):
        for ratio in np.geomspace(0.25, 4, 7):
            N = np.sqrt(C / 120) * ratio
            D = C / 6 / N
            rows.append(
                {"N": N, "D": D, "C": C, "L": 1.7 + 480 / N**0.35 + 2085 / D**0.37, "group": C}
            )
    return analysis.analyse(Table.from_rows(rows), form="chinchilla", resamples=50)


def test_each_is_the_best_at_foretelling_it(made: Analysis) -> None:
    assert made.minima is not None and made.parametric is not None
    # The data are of the parametric law, but vertices of parabolas lie on a straight line.
    assert made.parametric.minima_error < made.minima.error
    assert made.minima.size_error < made.parametric.size_error
    assert (made.chosen, made.allocator) == (made.parametric, made.minima)
    found, loss, sizes = (x.forecast(1e20) for x in (made, made.parametric, made.minima))
    assert (found.L, found.low, found.high) == (loss.L, loss.low, loss.high)
    assert (found.N, found.D) == (sizes.N, sizes.D) != (loss.N, loss.D)
    better = dataclasses.replace(made.parametric, size_error=0.0)
    assert dataclasses.replace(made, parametric=better).allocator is better


def test_hold_out_errors_are_those_of_the_last_slices(made: Analysis) -> None:
    assert made.minima is not None
    C, N, L = np.log([(m.C, m.N, m.L) for m in made.minima.fit.minima]).T
    errors = []
    for values in (L, N):
        foretold = [np.polyval(np.polyfit(C[:i], values[:i], 1), C[i]) - values[i] for i in (2, 3)]
        errors.append(foretold)
    assert made.minima.error == pytest.approx(np.sqrt(np.mean(np.expm1(errors[0]) ** 2)))
    assert made.minima.size_error == pytest.approx(np.sqrt(np.mean(np.square(errors[1]))))
