"""Intervals hold what they promise: measured on tables and runs drawn anew."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nn.analysis.scaling_laws import Bootstrap, Cost, Table, bootstrap, fit_parametric
from nn.analysis.scaling_laws.optimum import exponents, frontier
from nn.analysis.scaling_laws.resampling import Interval, refit, resample_weights
from nn.analysis.scaling_laws.solve import solve
from tests.nn.analysis.scaling_laws import synthetic

TABLES, RESAMPLES, ROWS, SIGMA = 200, 100, 100, 0.005


def test_intervals_cover_the_truth() -> None:
    """95 % intervals of 200 noisy tables, 100 resamples each: 20,000 refits in one call."""
    fit = fit_parametric(Table.of(synthetic.scattered(ROWS, 0)))
    rng = np.random.default_rng(1)
    losses = fit.problem.log_loss + SIGMA * rng.standard_normal((TABLES, ROWS))
    best = refit(fit, np.ones((TABLES, ROWS)), losses)
    problem = replace(
        fit.problem,
        weights=resample_weights(np.arange(ROWS), RESAMPLES * TABLES, rng),
        log_loss=np.repeat(losses, RESAMPLES, axis=0),
    )
    drawn = solve(problem, np.repeat(best, RESAMPLES, axis=0), 1e-6).phi_SP
    truth = {
        **synthetic.LAW,
        "a": 0.28 / 0.62,
        "N": synthetic.optimum(synthetic.LAW, 1e23),
        "L": frontier(fit.form, fit.uncentred(fit.phi_P)[None], np.asarray([1e23]), Cost()).L[0, 0],
    }
    covered = dict.fromkeys(truth, 0)
    for phi_P, phi_SP in zip(best, drawn.reshape(TABLES, RESAMPLES, 5), strict=True):
        boot = Bootstrap(replace(fit, phi_P=phi_P), phi_SP)
        intervals = {**boot.parameters(), **boot.optimum(1e23)}
        for name, value in truth.items():
            covered[name] += intervals[name].low <= value <= intervals[name].high
    for name, times in covered.items():
        assert 0.90 <= times / TABLES <= 0.98, (name, times / TABLES)


def test_prediction_intervals_need_the_scatter_of_runs() -> None:
    inside: dict[bool, list[float]] = {True: [], False: []}
    for seed in range(10):
        fit = fit_parametric(synthetic.noisy(synthetic.scattered(100, seed), 0.01, seed))
        boot = bootstrap(fit, 200)
        new = synthetic.scattered(100, 100 + seed)
        L = synthetic.noisy(new, 0.01, 200 + seed).number("L")
        for noise, shares in inside.items():
            _, low, high = boot.predict({"N": new["N"], "D": new["D"]}, noise=noise)
            shares.append(float(((low <= L) & (high >= L)).mean()))
    assert 0.90 <= np.mean(inside[True]) <= 0.98
    assert np.mean(inside[False]) < 0.6
    estimate, low, high = boot.predict({"N": 1e10, "D": 1e12})
    assert low < estimate < high and estimate == fit.predict(N=1e10, D=1e12)


def test_residuals_are_widened_for_the_parameters_that_they_paid_for() -> None:
    fit = fit_parametric(synthetic.noisy(synthetic.scattered(20, 1), 0.01), pin={"E": 1.69})
    sure = Bootstrap(fit, np.repeat(fit.phi_P[None], 2000, axis=0))  # no doubt about the law
    estimate, low, high = sure.predict({"N": 1e9, "D": 1e10}, level=1.0)
    wider = np.sqrt(20 / (20 - 4))
    assert np.log(high / estimate)[0] == pytest.approx(-fit.residuals.min() * wider, rel=1e-9)
    assert np.log(low / estimate)[0] == pytest.approx(-fit.residuals.max() * wider, rel=1e-9)


def test_resamples_are_draws_with_replacement() -> None:
    rng = np.random.default_rng(0)
    weights = resample_weights(np.arange(30), 2000, rng)
    assert (weights.sum(axis=1) == 30).all() and set(np.unique(weights)) >= {0.0, 1.0, 2.0}
    assert weights.mean(axis=0) == pytest.approx(1.0, abs=0.1)
    assert weights.var() == pytest.approx(1 - 1 / 30, rel=0.05)  # of a multinomial count
    clusters = np.repeat([5, 7, 9], [2, 3, 5])
    weights = resample_weights(clusters, 50, rng)
    assert (weights[:, :2] == weights[:, :1]).all() and (weights[:, 5:] == weights[:, 5:6]).all()
    assert (weights[:, [0, 2, 5]].sum(axis=1) == 3).all()
    within = np.arange(10) < 5
    weights = resample_weights(np.arange(10), 50, rng, within)
    assert (weights[:, 5:] == 0).all() and (weights.sum(axis=1) == 5).all()


def test_runs_that_share_their_error_are_drawn_together() -> None:
    """40 runs of 6 checkpoints with one error each: single rows see errors that are too small."""
    columns = synthetic.scattered(40, 3)
    columns = {name: np.repeat(values, 6) for name, values in columns.items()}
    spread = np.tile(np.geomspace(0.25, 1.0, 6), 40)
    N, D = columns["N"], columns["D"] * spread
    rng = np.random.default_rng(0)
    error = np.repeat(np.exp(0.01 * rng.standard_normal(40)), 6)
    law = fit_parametric(Table.of(synthetic.scattered(50, 0)))
    table = Table.of(
        {"N": N, "D": D, "L": law.predict(N=N, D=D) * error, "run": np.repeat(np.arange(40), 6)}
    )
    fit = fit_parametric(table)
    se = {by: bootstrap(fit, 400, cluster=by).parameters()["alpha"].se for by in ("run", "N", "")}
    assert se["run"] > 1.6 * se[""]
    assert se["N"] == pytest.approx(se["run"], rel=0.15)  # one size per run here
    with pytest.raises(ValueError, match="1 clusters by lr: at least 5"):
        one_rate = Table.of({**table.columns, "lr": np.ones(len(table))})
        bootstrap(fit_parametric(one_rate), cluster="lr")


def test_an_interval_is_of_percentiles_and_logarithms() -> None:
    draws = np.exp(np.random.default_rng(0).normal(2.0, 0.5, 20_000))
    interval = Interval.of(7.0, draws, 0.8)
    assert interval.log_se == pytest.approx(0.5, rel=0.02)
    assert np.log([interval.low, interval.high]) == pytest.approx(
        2 + 0.5 * np.asarray([-1.2816, 1.2816]), abs=0.03
    )
    assert np.isnan(Interval.of(0.0, draws - 5.0).log_se)


def test_an_irreducible_loss_that_resamples_disagree_on_is_flagged() -> None:
    steady = fit_parametric(synthetic.noisy(synthetic.scattered(240, 4), 0.005))
    assert bootstrap(steady, 200).findings() == []
    loose = fit_parametric(synthetic.noisy(synthetic.scattered(20, 4), 0.03, 2))
    (finding,) = bootstrap(loose, 200).findings()
    assert finding.code == "E_spread"
    pinned = fit_parametric(loose.view, pin={"E": 1.69})
    assert bootstrap(pinned, 200).findings() == []


def test_the_exponent_of_every_resample() -> None:
    fit = fit_parametric(synthetic.noisy(synthetic.scattered(100, 5), 0.005))
    boot = bootstrap(fit, 50)
    a, b = exponents(fit.form, fit.uncentred(boot.phi_SP), 1e20, Cost())
    draws = boot.draws
    np.testing.assert_allclose(a, draws["beta"] / (draws["alpha"] + draws["beta"]), rtol=1e-9)
    np.testing.assert_allclose(a + b, 1.0, rtol=1e-12)
    again = bootstrap(fit, 50)
    np.testing.assert_array_equal(boot.phi_SP, again.phi_SP)  # of one seed
    assert (bootstrap(fit, 50, seed=1).phi_SP != boot.phi_SP).any()
