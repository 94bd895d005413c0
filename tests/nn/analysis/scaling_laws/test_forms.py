"""Laws: published values, derivatives, and parameters there and back."""

from __future__ import annotations

import numpy as np
import pytest

from nn.analysis.scaling_laws import FORMS, constants
from nn.analysis.scaling_laws.table import Array

PUBLISHED = {
    "chinchilla": constants.HOFFMANN,
    "shared_exponent": {k: constants.MUENNIGHOFF[k] for k in ("E", "A", "B", "alpha")},
    "power": {"E": 1.7, "A": 60.0, "alpha": 0.07},
    "kaplan": constants.KAPLAN,
    "repeated": {**constants.MUENNIGHOFF, "beta": 0.38},  # unequal: U_N then depends on both
    "precision": constants.KUMAR,
    "moe": constants.KRAJEWSKI,
    "routed": constants.CLARK["S-BASE"],
}


def runs(form: str, rows: int, seed: int = 0) -> dict[str, Array]:
    """Columns that a form reads, of random runs."""
    rng = np.random.default_rng(seed)
    columns = {
        "N": np.exp(rng.uniform(17, 23, rows)),
        "D": np.exp(rng.uniform(20, 27, rows)),
        "granularity": 2.0 ** rng.integers(0, 5, rows),
        "experts": 2.0 ** rng.integers(0, 8, rows),
        **{f"bits_{x}": rng.integers(3, 17, rows) * 1.0 for x in ("weights", "activations", "kv")},
    }
    columns["C"] = 6 * columns["N"] * columns["D"]
    columns["unique_tokens"] = columns["D"] * rng.uniform(0.02, 1.5, rows)
    return {name: columns[name] for name in FORMS[form].columns}


def test_muennighoff_prints_these_losses() -> None:
    law = FORMS["repeated"]
    for N, D, L in ((6.34e9, 242e9, 2.2256440889984477), (8.67e9, 178e9, 2.2269634075087867)):
        found = law.loss(constants.MUENNIGHOFF, N=N, D=D, unique_tokens=25e9)[0]
        assert found == pytest.approx(L, abs=1e-15)


def test_unrepeated_runs_are_chinchilla_s() -> None:
    """One epoch, and fewer parameters than are optimal for the tokens."""
    c = runs("chinchilla", 9)
    once = FORMS["repeated"].loss(
        constants.MUENNIGHOFF, N=1e6 * np.ones(9), D=c["D"], unique_tokens=c["D"] * 2
    )
    shared = FORMS["shared_exponent"].loss(constants.MUENNIGHOFF, N=1e6 * np.ones(9), D=c["D"])
    np.testing.assert_allclose(once, shared, rtol=1e-14)


def test_full_precision_matters() -> None:
    """Hoffmann's law at Gopher's compute: 58.9 tokens per parameter, rounded 92.6."""
    for law, ratio in (
        (constants.HOFFMANN, 58.9),
        ({**constants.HOFFMANN, "alpha": 0.34, "beta": 0.28}, 92.6),
        (constants.BESIROGLU, 18.4),
    ):
        s = law["alpha"] + law["beta"]
        N = (law["alpha"] * law["A"] / (law["beta"] * law["B"])) ** (1 / s)
        N *= (5.76e23 / 6) ** (law["beta"] / s)
        assert pytest.approx(ratio, rel=0.01) == 5.76e23 / 6 / N**2


def test_routed_experts_are_worth_what_clark_says() -> None:
    """5M parameters with 128 experts: about a dense model of 55M (their logarithms are base 10)."""
    law, S_BASE = FORMS["routed"], constants.CLARK["S-BASE"]
    routed = law.loss(S_BASE, N=5e6, experts=128.0)[0]
    dense = law.loss(S_BASE, N=np.asarray([30e6, 55e6, 90e6]), experts=1.0)
    assert dense[0] > routed > dense[2]
    assert routed == pytest.approx(dense[1], rel=0.01)


def test_finer_experts_help_and_precision_costs() -> None:
    moe = FORMS["moe"].loss(constants.KRAJEWSKI, N=1e9, D=1e11, granularity=np.asarray([1.0, 16.0]))
    assert moe[0] > moe[1] > constants.KRAJEWSKI["E"]
    bits = {f"bits_{x}": np.asarray([4.0, 8.0, 1e3]) for x in ("weights", "activations", "kv")}
    low, half, full = FORMS["precision"].loss(constants.KUMAR, N=1e8, D=1e10, **bits)
    assert low > half > full
    exact = FORMS["chinchilla"].loss(constants.KUMAR, N=1e8, D=1e10)[0]
    assert full == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("name", FORMS)
def test_derivatives(name: str) -> None:
    form = FORMS[name]
    x_KI = form.features(runs(name, 11))
    phi = form.phi(PUBLISHED[name])
    jacobian = form.value_and_jacobian(phi[None], x_KI)[1][0]
    for i, direction in enumerate(np.eye(len(phi)) * 1e-6):
        ends = form.value_and_jacobian(np.stack([phi + direction, phi - direction]), x_KI)[0]
        np.testing.assert_allclose(jacobian[i], (ends[0] - ends[1]) / 2e-6, rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize("name", FORMS)
def test_parameters_there_and_back_and_centring_changes_no_loss(name: str) -> None:
    form, law = FORMS[name], PUBLISHED[name]
    phi = form.phi(law)
    back = form.natural(phi[None])
    for parameter in form.parameters:
        assert back[parameter][0] == pytest.approx(law[parameter], rel=1e-10)
    x_KI = form.features(runs(name, 6))
    centre = np.zeros(len(x_KI))
    for _, _, feature in form.shears:
        centre[feature] = 0.7 + feature
    moved = form.value_and_jacobian(form.shear(phi, centre, -1.0)[None], x_KI - centre[:, None])[0]
    np.testing.assert_allclose(
        moved, form.value_and_jacobian(phi[None], x_KI)[0], rtol=1e-12, atol=1e-12
    )
