"""Cells cost what they should, lie where they should, and what cannot be run says why."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from launch.laws.planner import Planner, as_row
from launch.run import config as configs


def test_budgets_are_exact(planner: Planner) -> None:
    plan = planner.plan()
    assert len(plan.cells) > 20
    for cell in plan.cells:
        if cell.budget:
            assert abs(cell.flops / cell.budget - 1) <= planner.study.flops_error
        config = configs.load(planner.spec, cell.overrides)
        units = config.train.steps * config.data.batch_size * config.data.sequence_length
        assert (units, config.train.steps, config.seed) == (cell.units, cell.steps, cell.seed)
        # One hidden layer, 4 vectors of 8 in, 64 out: 6 FLOPs per token and weight.
        width = config.model.hidden_dim
        assert cell.model.size.N_matmul == 4 * 8 * width + width * 64
        assert cell.flops == 6 * cell.model.size.N_matmul * units
        assert config.optimizer.warmup_steps == round(0.02 * cell.steps)
    assert plan.flops == sum(cell.flops for cell in plan.cells)


def test_slices_lie_around_their_centre(planner: Planner) -> None:
    center = 5000.0
    cells = [c for c in planner.plan({3e9: center}).cells if c.budget == 3e9 and c.role == "slice"]
    sizes = [cell.model.size.N_matmul for cell in cells]
    assert sizes == sorted(set(sizes)) and len(sizes) == planner.study.points
    assert center / 4 / 1.3 <= sizes[0] < center / 2 and 2 * center < sizes[-1] <= center * 4 * 1.3
    # The others follow by the exponent 1/2, and without any from tokens per parameter.
    assert planner.center(1.2e10, {3e9: center}) == pytest.approx(2 * center)
    first = planner.center(1e9)
    assert 1e9 / (6 * first * first) == pytest.approx(planner.study.center, rel=0.02)


def test_rates_and_seeds_of_the_middle(replanned: Callable[..., Planner]) -> None:
    plan = replanned(rates=(0.5, 2.0), seeds=(3, 4), noise_seeds=4).plan()
    rates = [cell for cell in plan.cells if cell.role == "rate"]
    assert [c.rate / 1e-3 for c in rates if c.budget == 1e10] == [0.5, 2.0]
    assert len({c.model.width for c in rates if c.budget == 1e10}) == 1
    noise = [cell for cell in plan.cells if cell.role == "noise"]
    assert {c.budget for c in noise} == {1e10} and [c.seed for c in noise] == [5, 6, 7]
    everywhere = replanned(rates=(0.5,), rates_at="everywhere").plan()
    slices = [c for c in everywhere.cells if c.role in ("slice", "held out")]
    assert len([c for c in everywhere.cells if c.role == "rate"]) == len(slices)


def test_what_is_left_out_says_why(replanned: Callable[..., Planner]) -> None:
    plan = replanned(min_steps=2000, held_out=()).plan()
    assert any("steps are fewer than study.min_steps=2000" in line for line in plan.left_out)
    assert all(cell.steps >= 2000 for cell in plan.cells)
    few = replanned(held_out=())
    few.unique = 10_000
    plan = few.plan()
    assert all(cell.units <= 40_000 for cell in plan.cells)
    assert any("epochs are more than study.max_epochs=4" in line for line in plan.left_out)
    with pytest.raises(ValueError, match=r"more than study\.max_flops=1e\+09.*nearest"):
        replanned(max_flops=1e9).plan()


def test_ratios(replanned: Callable[..., Planner]) -> None:
    plan = replanned(budgets=(), held_out=(), ratios=(20.0, 80.0)).plan()
    for cell in plan.cells:
        ratio = cell.units / cell.model.size.N_matmul
        assert min(abs(math.log(ratio / r)) for r in (20, 80)) < 0.05
    assert {cell.role for cell in plan.cells} == {"ratio"}


def test_a_row_says_what_a_cell_is(planner: Planner) -> None:
    cell = planner.plan().cells[0]
    row = as_row(cell)
    assert row["overrides"]["train.steps"] == str(cell.steps)
    assert {row["role"], row["budget"]} == {"slice", 1e9}
