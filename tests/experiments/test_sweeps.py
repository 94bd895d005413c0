"""The makers of cells, and the Halton sequence beside SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import qmc

from experiments import sweeps


def test_grids_products_and_zips() -> None:
    grid = sweeps.grid({"a": [1, 2], "b": "xy"})
    assert grid == [{"a": i, "b": c} for i in (1, 2) for c in "xy"]
    seeds = sweeps.grid({"seed": range(2)})
    assert sweeps.product(grid, seeds)[:3] == [
        {"a": 1, "b": "x", "seed": 0},
        {"a": 1, "b": "x", "seed": 1},
        {"a": 1, "b": "y", "seed": 0},
    ]
    assert sweeps.zipped(grid[:2], seeds) == [
        {"a": 1, "b": "x", "seed": 0},
        {"a": 1, "b": "y", "seed": 1},
    ]
    with pytest.raises(ValueError, match="4, 2 cells"):
        sweeps.zipped(grid, seeds)
    for join in (sweeps.product, sweeps.zipped):
        with pytest.raises(ValueError, match="'seed' is set by two"):
            join(seeds, seeds)


def test_keys_that_depend_on_others() -> None:
    cells = sweeps.derive(
        sweeps.grid({"name": ["sgd", "adam"]}),
        lambda cell: {"momentum": 0.9} if cell["name"] == "sgd" else {},
    )
    assert cells == [{"name": "sgd", "momentum": 0.9}, {"name": "adam"}]


def test_the_plain_sequence_is_scipys() -> None:
    expected = qmc.Halton(5, scramble=False).random(200)
    np.testing.assert_allclose(sweeps.halton(200, 5, seed=None), expected, atol=1e-9)


def test_permuted_digits_keep_every_interval_filled_and_break_the_correlation() -> None:
    points = np.asarray(sweeps.halton(7**2 * 13, 8, seed=4))
    assert points.min() >= 0 and points.max() < 1
    for column, cells in ((0, 2**9), (1, 3**5), (2, 5**3), (3, 7**2)):
        strata = np.floor(points[:cells, column] * cells).astype(int)
        assert sorted(strata) == list(range(cells))
    plain = np.asarray(sweeps.halton(17, 8, seed=None))
    assert np.corrcoef(plain[:, 6:].T)[0, 1] > 0.99  # bases 17 and 19 go up together at first
    assert abs(np.corrcoef(points[:17, 6:].T)[0, 1]) < 0.5
    assert sweeps.halton(10, 8, seed=4) == sweeps.halton(637, 8, seed=4)[:10]
    assert sweeps.halton(10, 8, seed=4) != sweeps.halton(10, 8, seed=5)


def test_draws_lie_where_they_should() -> None:
    space = {
        "rate": sweeps.log_uniform(1e-4, 1e-1),
        "dropout": sweeps.uniform(0.1, 0.3),
        "layers": sweeps.whole(2, 4),
        "width": sweeps.log_whole(16, 256, multiple=16),
        "name": sweeps.choice("adam", "lion"),
    }
    for draw in (sweeps.independent, sweeps.quasi_random):
        cells = draw(600, space, seed=1)
        assert cells == draw(600, space, seed=1)
        assert cells != draw(600, space, seed=2)
        columns = {name: [cell[name] for cell in cells] for name in space}
        assert set(columns["layers"]) == {2, 3, 4}
        assert set(columns["name"]) == {"adam", "lion"}
        assert {width % 16 for width in columns["width"]} == {0}
        assert min(columns["width"]) == 16 and 240 <= max(columns["width"]) <= 256
        logs = np.log10(columns["rate"])
        assert -4 <= logs.min() < -3.95 and -1.05 < logs.max() <= -1
        assert abs(logs.mean() + 2.5) < 0.1
        assert 0.1 <= min(columns["dropout"]) < 0.11 and 0.29 < max(columns["dropout"]) <= 0.3
        assert all(float(f"{x:.4g}") == x for x in columns["rate"])
    thirds = np.bincount([cell["layers"] for cell in sweeps.quasi_random(90, space)])
    assert max(abs(thirds[2:] - 30)) <= 2  # evenly, which independent draws are not
