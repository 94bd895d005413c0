"""The refit of Besiroglu et al. 2024, where its table is at hand.

TESSERA_CHINCHILLA_CSV names a CSV file of the 245 runs that they read off Hoffmann's figure, with
columns "Model Size", "Training FLOP" and "loss"; without it these tests are skipped.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from nn.analysis.scaling_laws import Table, bootstrap, drop_k, fit_parametric

# Huber's delta -> A, alpha, B, beta, E; the second is what they printed.
REFITS = {
    1e-3: (477.8, 0.3473, 2143.0, 0.3672, 1.8172),
    0.0: (482.01, 0.3478, 2085.43, 0.3658, 1.8172),
}


@pytest.fixture(scope="module")
def table() -> Table:
    with Path(os.environ["TESSERA_CHINCHILLA_CSV"]).open(newline="") as file:
        rows = list(csv.DictReader(file))
    return Table.from_rows(rows, N="Model Size", C="Training FLOP", L="loss")


@pytest.mark.parametrize("delta", REFITS)
def test_the_refit(table: Table, delta: float) -> None:
    fit = fit_parametric(table.drop_highest(5), delta=delta)
    assert len(fit.view) == 240 and fit.share > 0.9
    found = tuple(fit.parameters[name] for name in ("A", "alpha", "B", "beta", "E"))
    assert found == pytest.approx(REFITS[delta], rel=4e-4)


def test_its_errors_and_its_sensitivity(table: Table) -> None:
    boot = bootstrap(fit_parametric(table.drop_highest(5)), 2000)
    errors = [boot.parameters()[name].log_se for name in ("A", "B", "E")]
    assert errors == pytest.approx((0.258, 0.421, 0.014), rel=0.06)
    assert boot.optimum(5.76e23)["a"].estimate == pytest.approx(0.513, abs=0.002)
    a = [row["a"] for row in drop_k(fit_parametric(table))]
    assert (a[0], a[-1]) == pytest.approx((0.565, 0.484), abs=1e-3)
