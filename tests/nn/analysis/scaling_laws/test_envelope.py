"""Approach 1: the envelope of synthetic training curves."""

from __future__ import annotations

import numpy as np
import pytest

from nn.analysis.scaling_laws import FORMS, Curve, fit_envelope
from nn.analysis.scaling_laws.envelope import smooth
from tests.nn.analysis.scaling_laws.synthetic import LAW


def curves(sigma: float, sizes: int = 25, points: int = 120) -> list[Curve]:
    rng = np.random.default_rng(0)
    out = []
    for N in np.geomspace(1e7, 1e10, sizes):
        D = np.geomspace(1.0, 400.0, points) * N
        L = FORMS["chinchilla"].loss(LAW, N=N, D=D) * np.exp(sigma * rng.standard_normal(points))
        out.append(Curve(N, 6 * N * D, D, L))
    return out


@pytest.mark.parametrize("sigma", [0.0, 0.002])
def test_the_envelope_finds_the_exponents(sigma: float) -> None:
    fit = fit_envelope(curves(sigma))
    assert len(fit.C) == 1500 and fit.edges.any() and not fit.edges.all()
    assert fit.a == pytest.approx(0.28 / 0.62, abs=0.02)
    assert fit.b == pytest.approx(0.34 / 0.62, abs=0.02)
    middle = len(fit.C) // 2
    best = FORMS["chinchilla"].loss(LAW, N=fit.N[middle], D=fit.D[middle])[0]
    assert fit.L[middle] == pytest.approx(best, rel=0.002)
    assert fit.C[middle] == pytest.approx(6 * fit.N[middle] * fit.D[middle], rel=1e-6)


def test_smoothing_leaves_power_laws_and_takes_noise() -> None:
    C = np.geomspace(1e15, 1e18, 300)
    straight = Curve(1.0, C, C, 5.0 * (C / 1e15) ** -0.1)
    np.testing.assert_allclose(smooth(straight), np.log(straight.L), rtol=1e-12)
    rng = np.random.default_rng(0)
    noisy = Curve(1.0, C, C, straight.L * np.exp(0.01 * rng.standard_normal(300)))
    error = smooth(noisy) - np.log(straight.L)
    assert np.std(error[20:-20]) < 0.35 * 0.01


def test_what_is_no_envelope_is_refused() -> None:
    with pytest.raises(ValueError, match="2 sizes of model: an envelope needs at least 3"):
        fit_envelope(curves(0.0, sizes=2))
    crossed = curves(0.0, sizes=3)
    crossed[1] = Curve(crossed[1].N, crossed[1].C, crossed[1].D, crossed[1].L * 1.5)
    with pytest.raises(ValueError, match="everywhere the smallest or the largest"):
        fit_envelope(crossed)
    crossed[1] = Curve(1e8, crossed[1].C[::-1], crossed[1].D, crossed[1].L)
    with pytest.raises(ValueError, match="curve 1 .*must rise"):
        fit_envelope(crossed)
