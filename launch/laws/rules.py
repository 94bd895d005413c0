"""Learning rate and batch of each size of model, by the rule of a study."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import FrozenConfigDict

from launch.run.keys import render
from nn.analysis.scaling_laws import rules

SCALED = ("mup", "completep")  # rules of launch/run/scale.py: the rate is that of the base


@dataclasses.dataclass(frozen=True)
class At:
    """Of one model on some data. set: further keys of the config."""

    rate: float
    batch_size: int
    set: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Rule:
    """name: a rule of a study. base: what the base model of muP and CompleteP sets."""

    name: str
    config: FrozenConfigDict
    base: Mapping[str, Any]

    def at(self, model: Any, units: float) -> At:
        """Of a model (`launch.laws.planner.Model`) on that many units of data."""
        options, batch_size = self.config.optimizer, self.config.data.batch_size
        if self.name == "fixed":
            return At(options.learning_rate, batch_size, {})
        if self.name in SCALED:
            prefix = "model."
            fields = (f"{k.removeprefix(prefix)}={render(v)}" for k, v in self.base.items())
            set_ = {"scale.rule": self.name, "scale.base": ",".join(fields)}
            return At(options.learning_rate, batch_size, set_)
        if self.name == "step_law":
            found = rules.step_law(model.size.N_nonemb, units)
        elif self.name == "deepseek":
            found = rules.deepseek(units * model.size.flops_per_unit)
        else:
            found = rules.porian(model.size.N_nonemb)
        per_row = model.size.units / batch_size
        return At(found.lr, max(round(found.batch / per_row), 1), {})
