"""Detectors of runs that were not at their best: each sees its own fault and nothing else."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from nn.analysis.scaling_laws import Table, fit_parametric, under_tuned
from nn.analysis.scaling_laws.tuning import not_monotone, residual_trends, seed_sigma
from tests.nn.analysis.scaling_laws import synthetic


def good() -> dict[str, Any]:
    """IsoFLOP runs with everything as it should be, and three seeds of one cell."""
    columns: dict[str, Any] = synthetic.isoflops(points=5)
    columns = {k: np.concatenate([v, v[12:13], v[12:13]]) for k, v in columns.items()}
    rows = len(columns["L"])
    columns["L"][-2:] *= 1.001, 0.999
    columns |= {"seed": [0] * (rows - 2) + [1, 2], "lr": [1e-3] * rows, "steps": [1000] * rows}
    columns |= {"warmup": 0.05 * columns["D"], "unique_tokens": columns["D"] / 2}
    return {**columns, "lr_decayed": [1] * rows}


def codes(columns: dict[str, Any], **options: Any) -> list[str]:
    return [f.code for f in under_tuned(Table.of(columns).view(), **options)]


def test_nothing_is_wrong_with_good_runs() -> None:
    assert codes(good()) == []


@pytest.mark.parametrize(
    ("column", "value", "code", "says"),
    [
        ("warmup", lambda D: 0.3 * D, "warmup", "takes 30% of its tokens"),
        ("steps", lambda D: 120, "steps", "120 steps .at least 300"),
        ("unique_tokens", lambda D: D / 5, "epochs", "5.0 epochs"),
        ("lr_decayed", lambda D: 0, "not_decayed", "had not decayed"),
    ],
)
def test_one_row_at_fault(column: str, value: Any, code: str, says: str) -> None:
    columns = good()
    values = np.asarray(columns[column], np.float64)
    values[7] = value(columns["D"][7])
    (finding,) = under_tuned(Table.of({**columns, column: values}).view())
    assert finding.code == code and finding.message.startswith("row 7: ")
    assert re.search(says, finding.message)


@pytest.mark.parametrize("knob", ["lr", "batch"])
def test_a_best_value_at_the_end_of_its_grid(knob: str) -> None:
    columns = synthetic.isoflops(points=3)
    columns = {k: np.repeat(v, 3) for k, v in columns.items()}
    rows = len(columns["L"])
    grid = np.tile([0.5, 1.0, 2.0], rows // 3)
    parabola = 1 + 0.01 * np.log(grid) ** 2
    inside = Table.of({**columns, "L": columns["L"] * parabola, knob: grid})
    assert [f.code for f in under_tuned(inside.view(), sigma=0.01)] == []
    parabola[6:9] = [1.0, 1.01, 1.03]  # the third cell: smallest is best
    parabola[0:3] = [1.03, 1.01, 1.0]  # the first: largest
    edges = Table.of({**columns, "L": columns["L"] * parabola, knob: grid})
    found = under_tuned(edges.view(), sigma=0.01)
    assert [f.code for f in found] == [f"{knob}_edge"] * 2
    assert all(f.severity == "red" for f in found)
    assert {"smallest of the 3 tried", "largest of the 3 tried"} == {
        f.message.split("is the ")[1].split(":")[0] for f in found
    }


def test_loss_that_rises_with_size_or_tokens() -> None:
    N, D = (x.reshape(-1) for x in np.meshgrid([1e6, 4e6, 16e6], [1e8, 4e8, 16e8]))
    L = fit_parametric(Table.of(synthetic.scattered(20, 0))).predict(N=N, D=D)
    view = Table.of({"N": N, "D": D, "L": L}).view()
    assert [f.code for f in not_monotone(view)] == ["no_seeds"]
    assert not_monotone(view, sigma=0.001) == []
    L[8] = 1.05 * max(L[5], L[7])  # the largest size with the most tokens
    found = not_monotone(Table.of({"N": N, "D": D, "L": L}).view(), sigma=0.001)
    assert [f.code for f in found] == ["not_monotone_N", "not_monotone_D"]
    assert "D = 1.6e+09: from N = 4e+06 to 1.6e+07 the loss rises" in found[0].message
    assert not_monotone(Table.of({"N": N, "D": D, "L": L}).view(), sigma=0.2) == []


def test_noise_between_seeds() -> None:
    columns = good()
    expected = np.std(np.log([1.0, 1.001, 0.999]), ddof=1)
    assert seed_sigma(Table.of(columns).view()) == pytest.approx(expected)
    columns["lr"][-2:] = [2e-3, 5e-4]  # no longer the same run with another seed
    assert seed_sigma(Table.of(columns).view()) is None


def test_residuals_that_follow_a_setting() -> None:
    columns = synthetic.scattered(60, 1)
    rng = np.random.default_rng(0)
    lr = 10 ** rng.uniform(-4, -2, 60)
    noise = np.exp(0.002 * rng.standard_normal(60))
    calm = fit_parametric(Table.of({**columns, "L": columns["L"] * noise, "lr": lr}))
    assert residual_trends(calm) == []
    bent = fit_parametric(Table.of({**columns, "L": columns["L"] * noise * lr**0.005, "lr": lr}))
    (finding,) = residual_trends(bent)
    assert finding.code == "trend_lr" and "rank correlation +0." in finding.message
