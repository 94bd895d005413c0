"""Forecasts say how far they reach and how they held; stop rules stop for their reasons."""

from __future__ import annotations

import numpy as np
import pytest

from nn.analysis.scaling_laws import (
    Bootstrap,
    allocation,
    bootstrap,
    fit_parametric,
    forecast,
    leave_future_out,
    may_stop,
)
from nn.analysis.scaling_laws.holdout import HeldOut
from tests.nn.analysis.scaling_laws import synthetic


@pytest.fixture(scope="module")
def boot() -> Bootstrap:
    table = synthetic.noisy(synthetic.isoflops(points=9), 0.003)
    return bootstrap(fit_parametric(table), 300)


def row(trained_to: float, C: float, error: float) -> HeldOut:
    return HeldOut(trained_to, C, 9, error, error, 0.8, 0.5)


def test_a_forecast(boot: Bootstrap) -> None:
    N = synthetic.optimum(synthetic.LAW, 1e23)
    D = 1e23 / 6 / N
    found = forecast(boot, N, D, held_out=[row(1e19, 1e20, 0.001), row(1e19, 1e21, 0.002)])
    truth = boot.fit.form.loss(synthetic.LAW, N=N, D=D)[0]
    assert found.low < found.law_low < found.L < found.law_high < found.high
    assert found.law_low < truth < found.law_high
    assert pytest.approx(1e23) == found.C and found.beyond == pytest.approx(100.0)
    assert found.held == pytest.approx(0.8)
    assert np.isnan(forecast(boot, N, D).held)
    wide = forecast(boot, N, D, level=0.99)
    assert wide.low < found.low and wide.high > found.high


def test_an_allocation_with_its_intervals(boot: Bootstrap) -> None:
    found = allocation(boot, 1e22)
    assert set(found) == {"a", "b", "N", "D", "L", "D/N"}
    true = synthetic.optimum(synthetic.LAW, 1e22)
    assert found["N"].low < true < found["N"].high
    assert found["D/N"].estimate == pytest.approx(found["D"].estimate / found["N"].estimate)
    assert found["D/N"].low < found["D/N"].estimate < found["D/N"].high


def test_stop_rules(boot: Bootstrap) -> None:
    # This law is known so well that the wrong N* costs nothing to speak of.
    assert may_stop(boot, [], 1e22).stop
    assert "would waste" in may_stop(boot, [], 1e22).reason
    target = 1e25
    loose, looser = (
        bootstrap(fit_parametric(synthetic.noisy(synthetic.isoflops(points=7, span=3), *by)), 300)
        for by in ((0.006, 1), (0.008, 2))
    )
    good = [row(1e18, 1e19, 0.02), row(1e19, 1e20, -0.005), row(1e20, 1e21, 0.008)]
    bad = [row(1e19, 1e20, -0.005), row(1e20, 1e21, 0.013), row(1e20, 1e22, 0.001)]
    verdict = may_stop(loose, good, target)
    assert verdict.stop and "held-out errors 0.50%, 0.80%" in verdict.reason
    assert not may_stop(loose, bad, target).stop
    assert may_stop(loose, bad, target, sigma=0.007).stop  # 1.3 % is within twice the noise
    assert not may_stop(loose, good[-1:], target).stop  # twice running, not once
    too_loose = may_stop(looser, good, target)
    assert not too_loose.stop and "N* within a factor of 1.7" in too_loose.reason
    # Errors of a real table: the nearest budget of the last two stretches.
    rows = leave_future_out(loose.fit, resamples=2)
    errors = [r.error for r in rows if r.C / r.trained_to < 11][-2:]
    assert f"{abs(errors[0]):.2%}, {abs(errors[1]):.2%}" in may_stop(loose, rows, target).reason
