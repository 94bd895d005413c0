"""Decisions from a law: the closed form, the search, the inverse, and what an error costs."""

from __future__ import annotations

import numpy as np
import pytest

from nn.analysis.scaling_laws import FORMS, Cost, Fit, Table, deadweight, fit_parametric, optimal
from nn.analysis.scaling_laws.constants import KAPLAN, KUMAR, MUENNIGHOFF
from nn.analysis.scaling_laws.optimum import best_of, compute_for, exponents, frontier
from tests.nn.analysis.scaling_laws import synthetic


@pytest.fixture(scope="module")
def fit() -> Fit:
    return fit_parametric(Table.of(synthetic.scattered(60, 0)))


def by_grid(form: str, law: dict[str, float], C: float, cost: Cost, **fixed: float) -> float:
    """ln N* by brute force."""
    n = np.linspace(0.0, np.log(C / 6), 400_001)
    N = np.exp(n)
    return float(n[np.argmin(FORMS[form].loss(law, N=N, D=cost.tokens(N, np.asarray(C)), **fixed))])


@pytest.mark.parametrize("cost", [Cost(), Cost(9.0, -0.05), Cost(4.0, 0.1)])
@pytest.mark.parametrize(
    ("form", "law", "fixed"),
    [
        ("chinchilla", synthetic.LAW, {}),
        ("shared_exponent", {k: MUENNIGHOFF[k] for k in ("E", "A", "B", "alpha")}, {}),
        ("kaplan", KAPLAN, {}),
        ("repeated", MUENNIGHOFF, {"unique_tokens": 1e11}),
        ("precision", KUMAR, {"bits_weights": 4.0, "bits_activations": 8.0, "bits_kv": 8.0}),
    ],
)
def test_the_best_allocation(
    form: str, law: dict[str, float], fixed: dict[str, float], cost: Cost
) -> None:
    phi = FORMS[form].phi(law)[None]
    best = frontier(FORMS[form], phi, np.asarray([1e20, 1e22]), cost, fixed)
    assert np.log(best.N[0, 1]) == pytest.approx(by_grid(form, law, 1e22, cost, **fixed), abs=1e-4)
    np.testing.assert_allclose(cost.flops(best.N, best.D), best.C, rtol=1e-9)
    assert best.L[0, 1] < best.L[0, 0]


def test_exponents_of_the_optimum() -> None:
    phi = FORMS["chinchilla"].phi(synthetic.LAW)[None]
    for omega in (0.0, 0.2):
        a, b = exponents(FORMS["chinchilla"], phi, 1e21, Cost(6.0, omega))
        assert a[0] == pytest.approx(0.28 / (0.34 + (1 + omega) * 0.28), rel=1e-9)
        assert (1 + omega) * a[0] + b[0] == pytest.approx(1.0, rel=1e-12)


def test_cost_is_measured_from_exact_flops() -> None:
    N, D = np.geomspace(1e6, 1e9, 12), np.full(12, 1e9)
    columns = {"N": N, "D": D, "L": np.ones(12), "C": 11.0 * N**0.9 * D}
    cost = Cost.of(Table.of(columns).view())
    assert (cost.kappa, cost.omega) == pytest.approx((11.0, -0.1)) and cost.error < 1e-9
    assert Cost.of(Table.of({k: columns[k] for k in "NDL"}).view()) == Cost()
    bent = {**columns, "C": columns["C"] * (1 + 0.1 * (np.arange(12) % 2))}
    assert 0.03 < Cost.of(Table.of(bent).view()).error < 0.1
    one_size = {**columns, "N": np.full(12, 1e6), "C": 8e6 * D}
    assert Cost.of(Table.of(one_size).view()).kappa == pytest.approx(8.0)


def test_budget_to_loss_and_back(fit: Fit) -> None:
    best = optimal(fit, C=1e23)
    assert best.N[0] == pytest.approx(synthetic.optimum(synthetic.LAW, 1e23), rel=1e-4)
    assert best.tokens_per_parameter[0] == pytest.approx(best.D[0] / best.N[0])
    again = optimal(fit, L=float(best.L[0]))
    assert again.C[0] == pytest.approx(1e23, rel=1e-6)
    with pytest.raises(ValueError, match=r"L = 1.5: this law reaches losses between 1.69"):
        optimal(fit, L=1.5)
    with pytest.raises(ValueError, match="one of them"):
        optimal(fit)
    with pytest.raises(ValueError, match="says nothing about N and D apart"):
        optimal(fit_parametric(fit.view, "power", pin={}), C=1e20)
    with pytest.raises(ValueError, match="also reads unique_tokens"):
        frontier(FORMS["repeated"], FORMS["repeated"].phi(MUENNIGHOFF)[None], np.ones(1), Cost())


def test_the_price_of_a_misallocation(fit: Fit) -> None:
    best = optimal(fit, C=1e22)
    N, D = float(best.N[0]), float(best.D[0])
    assert deadweight(fit, N, D).wasted == pytest.approx(0.0, abs=1e-6)
    off = deadweight(fit, 4 * N, D / 4)
    assert pytest.approx(1e22, rel=1e-9) == off.C and off.C_equivalent < off.C
    assert off.C_equivalent == pytest.approx(compute_for(fit, off.L), rel=1e-9)
    assert optimal(fit, C=off.C_equivalent).L[0] == pytest.approx(off.L, rel=1e-9)
    assert 0.1 < off.wasted < 0.5
    assert deadweight(fit, 16 * N, D / 16).wasted > off.wasted


def test_the_best_of_what_can_be_built(fit: Fit) -> None:
    N = np.geomspace(1e8, 1e11, 31)
    index, L = best_of(fit, N, 6 * N, 1e22)
    assert (
        abs(np.log(N[index] / float(optimal(fit, C=1e22).N[0]))) <= np.log(N[1] / N[0]) / 2 * 1.01
    )
    assert L[index] == L.min()
    # Twice the FLOPs per token for the large models: the best is a smaller one.
    assert best_of(fit, N, 6 * N * np.where(N > 1e9, 4, 1), 1e22)[0] < index
