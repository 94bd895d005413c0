"""What a plan takes on a machine that is not there."""

from __future__ import annotations

import dataclasses

import pytest

from launch.cluster import hardware
from launch.laws import cost
from launch.laws.planner import Plan, Planner


def test_time_follows_flops_and_a_measured_share(planner: Planner) -> None:
    chip = hardware.chip("h100")
    cells = [cell for cell in planner.plan().cells if cell.model.width == 64][:2]
    best = cost.Costs(planner.spec, [], chip, 1).all(Plan(cells, []))
    for cell, one in zip(cells, best, strict=True):
        assert 0 < one.mfu < 1 and 0 < one.memory < one.room
        assert one.seconds * one.mfu * chip.bfloat16 == pytest.approx(cell.flops)
    assert best[0].seconds / cells[0].steps == pytest.approx(best[1].seconds / cells[1].steps)
    shares = cost.Costs(planner.spec, [], chip, 1, mfu=0.4).all(Plan(cells, []))
    assert [x.seconds for x in shares] == pytest.approx(
        [cell.flops / (0.4 * chip.bfloat16) for cell in cells]
    )
    hours = sum(x.hours for x in shares)
    assert f"{hours * 2:,.2f} at 2 an hour" in cost.totals(shares, 1, 2.0)


def test_a_model_that_does_not_fit_says_so(planner: Planner) -> None:
    chip = dataclasses.replace(hardware.chip("h100"), memory=1e4)
    (cell, *_) = planner.plan().cells
    with pytest.raises(ValueError, match=r"no mesh of 1 devices has room.*nearest: --devices=2"):
        cost.Costs(planner.spec, [], chip, 1).of(cell)
