"""Rates and batches by rule, as their papers have them, and what muP sets."""

from __future__ import annotations

import pytest

from launch.laws.planner import Planner
from launch.laws.rules import Rule
from launch.run import config as configs


def test_published_rules(planner: Planner) -> None:
    model, units = planner.models[-1], 5e6
    size = model.size
    found = Rule("step_law", planner.config, {}).at(model, units)
    assert found.rate == pytest.approx(1.79 * size.N_nonemb**-0.713 * units**0.307)
    assert found.batch_size == round(0.58 * units**0.571 / 8)  # rows of 8 tokens
    found = Rule("deepseek", planner.config, {}).at(model, units)
    assert found.rate == pytest.approx(0.3118 * (units * size.flops_per_unit) ** -0.125)
    found = Rule("porian", planner.config, {}).at(model, units)
    assert found.rate == pytest.approx(0.0047 * (size.N_nonemb / 108e6) ** (-1 / 3))
    fixed = Rule("fixed", planner.config, {}).at(model, units)
    assert (fixed.rate, fixed.batch_size, fixed.set) == (1e-3, 4, {})


def test_the_rate_of_the_base_holds_for_all_under_mup(planner: Planner) -> None:
    base = planner.models[2]
    found = Rule("mup", planner.config, base.set).at(planner.models[-1], 1e6)
    assert found.set == {"scale.rule": "mup", "scale.base": "hidden_dim=16"}
    wide = {**planner.models[-1].set, **found.set}
    config = configs.load(planner.spec, configs.overrides_of(wide))
    assert (config.model.hidden_dim, config.scale.base) == (768, "hidden_dim=16")


def test_the_base_is_one_of_the_widths(spec: str) -> None:
    from launch.laws import study

    with pytest.raises(
        ValueError, match=r"base_width=20 is none of study\.widths; nearest: (16|24)"
    ):
        Planner(study.load(spec, ["base_width=20", "rule=mup"]), spec)
