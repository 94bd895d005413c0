"""Laws within one run: annealing, gradient noise, published rules."""

from __future__ import annotations

import numpy as np
import pytest

from nn.analysis.scaling_laws import rules
from nn.analysis.scaling_laws.annealing import Annealing, MultiPower, Run, areas, fit_annealing
from nn.analysis.scaling_laws.noise_scale import Tradeoff, critical_batch, fit_tradeoff, noise_scale

LR = np.concatenate([np.full(60, 1e-3), np.linspace(1e-3, 1e-5, 40), np.full(5, 1e-5)])


def test_areas_are_the_double_sum() -> None:
    S1, S2 = areas(LR, decay=0.9)
    for s in (0, 59, 70, 104):
        assert S1[s] == pytest.approx(LR[: s + 1].sum())
        double = sum(
            (LR[k - 1] - LR[k]) * 0.9 ** (i - k) for i in range(s + 1) for k in range(1, i + 1)
        )
        assert S2[s] == pytest.approx(double, abs=1e-15)
    warm = np.concatenate([np.linspace(1e-5, 1e-3, 20), LR[20:]])
    np.testing.assert_array_equal(areas(warm, warmup=20), areas(LR))
    assert areas(warm)[1][19] < 0  # without: a rise would count as the opposite of annealing


def test_a_decayed_loss_is_foretold_from_a_trunk_and_one_branch() -> None:
    law = Annealing(L0=2.5, A=0.6, alpha=0.4, C=0.8)
    trunk = np.full(6000, 1e-3)
    branch = np.concatenate([trunk[:2000], np.linspace(1e-3, 1e-5, 500)])
    steps = np.arange(200, 6000, 100)
    rng = np.random.default_rng(0)
    runs = [
        Run(trunk, steps, law.loss(trunk)[steps]),
        Run(branch, np.arange(2000, 2500, 20), law.loss(branch)[2000::20]),
    ]
    found = fit_annealing(runs)
    assert (found.L0, found.A, found.alpha, found.C) == pytest.approx(
        (law.L0, law.A, law.alpha, law.C), rel=1e-5
    )
    noisy = [
        Run(r.lr_T, r.steps, r.L * np.exp(0.002 * rng.standard_normal(len(r.L)))) for r in runs
    ]
    long = np.concatenate([trunk, np.linspace(1e-3, 1e-5, 1000)])
    forecast = fit_annealing(noisy).loss(long)[-1]
    assert forecast == pytest.approx(law.loss(long)[-1], rel=0.004)
    assert law.loss(long)[-1] < law.loss(np.full(7000, 1e-3))[-1] - 0.05  # decay pays
    with pytest.raises(ValueError, match="constant learning rate.*add one run"):
        fit_annealing(runs[:1])


def test_the_multi_power_law_is_its_sum() -> None:
    law = MultiPower(L0=2.6, A=0.5, alpha=0.45, B=300.0, C=2.0, beta=0.5, gamma=0.6, S_W=0.01)
    for t in (3, 65, 104):
        expected = law.L0 + law.A * (LR[: t + 1].sum() + law.S_W) ** -law.alpha
        for k in range(1, t + 1):
            x = law.C * LR[k] ** -law.gamma * LR[k : t + 1].sum()
            expected -= law.B * (LR[k - 1] - LR[k]) * (1 - (x + 1) ** -law.beta)
        assert law.loss(LR, np.asarray([t]))[0] == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="learning rate 0.0 at step 2"):
        law.loss(np.asarray([1e-3, 1e-3, 0.0]), np.asarray([1]))


def test_gradient_noise_from_two_batches() -> None:
    """Gradients G + noise of known covariance: |G|^2 = 4, tr(Sigma) = 200."""
    rng = np.random.default_rng(0)
    true = np.full(16, 0.5)
    noise = rng.standard_normal((4000, 8, 16)) * np.sqrt(200 / 16 / 4)  # batches of 4 examples
    small = ((true + noise) ** 2).sum(axis=2).mean(axis=1)
    big = ((true + noise.mean(axis=1)) ** 2).sum(axis=1)
    scale = noise_scale(small, big, 4, 32)
    assert scale.squared_gradient == pytest.approx(4.0, rel=0.05)
    assert scale.trace == pytest.approx(200.0, rel=0.02)
    assert scale.b_simple == pytest.approx(50.0, rel=0.05)
    exact = noise_scale(np.asarray([4 + 200 / 4]), np.asarray([4 + 200 / 32]), 4, 32)
    assert exact.b_simple == pytest.approx(50.0, rel=1e-12)
    assert noise_scale(np.asarray([50.0]), np.asarray([6.2]), 4, 32).b_simple == float("inf")
    with pytest.raises(ValueError, match="accumulate at least 2"):
        noise_scale(small, big, 32, 32)


def test_steps_against_examples() -> None:
    law = Tradeoff(s_min=1000.0, b_crit=64.0)
    for batch in (8.0, 64.0, 512.0):
        S, E = law.steps(batch), law.examples(batch)
        assert pytest.approx(S * batch) == E
        assert (S / law.s_min - 1) * (E / law.e_min - 1) == pytest.approx(1.0)
    batch = np.asarray([8.0, 32.0, 128.0, 512.0])
    found = fit_tradeoff(batch, 1000.0 * (1 + 64.0 / batch))
    assert (found.s_min, found.b_crit) == pytest.approx((1000.0, 64.0))
    with pytest.raises(ValueError, match="do not bracket"):
        fit_tradeoff(batch, 1e5 / batch**1.2)
    with pytest.raises(ValueError, match="at least 2"):
        fit_tradeoff(np.ones(3), np.ones(3))
    assert critical_batch(3.0) == pytest.approx(1.12e6, rel=0.01)


def test_deepseek_s_own_models() -> None:
    """Their 7B and 67B on 2T tokens: 4.2e-4 with 2304 x 4096, 3.2e-4 with 4608 x 4096 tokens."""
    for layers, d, lr, batch in ((30, 4096, 4.2e-4, 2304 * 4096), (95, 8192, 3.2e-4, 4608 * 4096)):
        M = 72 * layers * d**2 + 12 * layers * d * 4096
        recipe = rules.deepseek(M * 2e12)
        assert recipe.lr == pytest.approx(lr, rel=0.03)
        assert recipe.batch == pytest.approx(batch, rel=0.1)
    M, D = rules.deepseek_allocation(1e21)
    assert pytest.approx(1e21, rel=0.01) == M * D


def test_other_rules() -> None:
    law = rules.step_law(1e9, 1e11)
    assert (law.lr, law.batch) == pytest.approx((1.633e-3, 1.108e6), rel=1e-3)
    assert rules.step_law(8e9, 1e11).lr < law.lr < rules.step_law(1e9, 8e11).lr
    small, large = rules.porian(108e6), rules.porian(8 * 108e6)
    assert (small.lr, small.batch, small.warmup, small.beta2) == (0.0047, 327_680, 108e6, 0.99)
    assert (large.lr, large.batch, large.beta2) == pytest.approx((0.00235, 4 * 327_680, 0.95))
    assert rules.power_lines_batch(4e10, 1e10, 1e6) == pytest.approx(1e6 * 4**0.383)
