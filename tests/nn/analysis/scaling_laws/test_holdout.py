"""Refits that leave something out: what they should, and should not, notice."""

from __future__ import annotations

import numpy as np
import pytest

from nn.analysis.scaling_laws import (
    Table,
    choose,
    delta_sweep,
    drop_k,
    fit_parametric,
    influence,
    leave_future_out,
)
from nn.analysis.scaling_laws.holdout import coverage
from tests.nn.analysis.scaling_laws import synthetic


def test_a_true_law_foretells_and_a_bent_one_does_not() -> None:
    columns = synthetic.isoflops()
    rows = leave_future_out(fit_parametric(Table.of(columns)), resamples=5)
    # Stretches of 2, 3, 4 budgets predict the 3, 2, 1 later ones.
    assert [(round(np.log10(r.trained_to)), round(np.log10(r.C))) for r in rows] == [
        *[(18, 19), (18, 20), (18, 21)],
        *[(19, 20), (19, 21)],
        (20, 21),
    ]
    assert max(abs(r.worst) for r in rows) < 1e-6
    columns["L"] = columns["L"] * np.where(columns["C"] > 5e19, 1.05, 1.0)  # 5 % above the law
    rows = leave_future_out(fit_parametric(Table.of(columns)), resamples=50)
    before = [r for r in rows if r.trained_to < 5e19 and r.C > 5e19]
    assert [r.error for r in before] == pytest.approx([1 / 1.05 - 1] * len(before), abs=0.003)
    assert all(r.covered < 0.5 for r in before)


def test_coverage_of_held_out_runs_is_measured() -> None:
    fit = fit_parametric(synthetic.noisy(synthetic.isoflops(points=11), 0.005, 4))
    rows = leave_future_out(fit, resamples=200)
    with_noise, by_law = coverage(rows)
    assert by_law < with_noise <= 1.0 and with_noise > 0.7
    assert all(r.rows == 11 and abs(r.error) < 0.05 for r in rows)


def test_scattered_runs_are_held_out_in_a_dozen_stages() -> None:
    fit = fit_parametric(synthetic.noisy(synthetic.scattered(120, 0), 0.005))
    rows = leave_future_out(fit, resamples=5)
    assert {r.rows for r in rows} == {10}
    assert len({r.C for r in rows}) == 10 and all(r.trained_to < r.C for r in rows)


def test_nothing_is_held_out_of_one_design() -> None:
    """Two budgets: one would be left, and one budget holds no law."""
    fit = fit_parametric(Table.of(synthetic.isoflops(budgets=(1e18, 1e20))))
    assert leave_future_out(fit) == []


def test_the_spoiled_run_is_the_most_influential() -> None:
    table = synthetic.noisy(synthetic.isoflops(), 1e-3)
    L = table.number("L").copy()
    L[40] *= 1.03
    fit = fit_parametric(Table.of({**table.columns, "L": L}), delta=float("inf"))
    first = influence(fit, C=1e20)[0]
    assert first["run"] == "row 40"
    without = fit_parametric(fit.view.table.keep(np.arange(45) != 40, "spoiled"), delta=np.inf)
    for name in ("E", "alpha", "beta"):
        moved = without.parameters[name] - fit.parameters[name]
        assert first[name] == pytest.approx(moved, rel=1e-3, abs=1e-8)


def test_dropping_the_highest_losses() -> None:
    columns = synthetic.isoflops()
    columns["L"][np.argsort(columns["L"])[-3:]] *= 1.1
    fit = fit_parametric(Table.of(columns), delta=float("inf"))
    rows = drop_k(fit, (0, 1, 3, 5, 44))
    assert [r["k"] for r in rows] == [0, 1, 3, 5]  # 44 of 45 can not be dropped
    assert rows[0]["a"] == pytest.approx(rows[0]["beta"] / (rows[0]["alpha"] + rows[0]["beta"]))
    errors = [abs(r["alpha"] - 0.34) for r in rows]
    assert errors[0] > 0.01 and errors[2] < 1e-6 and errors[3] < 1e-6


def test_delta_of_huber_s_loss() -> None:
    columns = synthetic.isoflops()
    columns["L"][::9] *= 1.05
    rows = delta_sweep(fit_parametric(Table.of(columns)), (np.inf, 1e-2, 1e-3, 0.0))
    errors = [abs(r["a"] - 0.28 / 0.62) for r in rows]
    assert errors == sorted(errors, reverse=True) and errors[0] > 10 * errors[-1]
    alone = fit_parametric(Table.of(columns), delta=1e-2)
    assert rows[1]["alpha"] == pytest.approx(alone.parameters["alpha"], rel=1e-4)


def test_hold_out_chooses_the_law() -> None:
    power = synthetic.noisy(synthetic.isoflops({**synthetic.LAW, "E": 1e-12}), 0.01, 1)
    best = choose(power)[0]
    assert (best.form, best.pins) == ("chinchilla", {"E": 0.0})
    offset = synthetic.noisy(synthetic.isoflops(), 0.001, 1)
    ranked = choose(offset)
    assert (ranked[0].form, ranked[0].pins) == ("chinchilla", {})
    assert [c.error for c in ranked] == sorted(c.error for c in ranked)
    with pytest.raises(ValueError, match="at least 3"):
        choose(Table.of(synthetic.isoflops(budgets=(1e18, 1e20))))
