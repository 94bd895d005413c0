"""How large a model is, by every convention, and what a step of it costs: from shapes alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from ml_collections import FrozenConfigDict

from launch.run import meshes, shapes
from launch.run.build import build
from launch.sweeping import record
from nn import parallel


@dataclasses.dataclass(frozen=True)
class Size:
    """N_*: parameters (see nn/analysis/parameters.py). flops: of one training step, as the model
    needs them: forward and backward pass, nothing twice, attention in full. units: tokens that are
    predicted in one step, or examples where there are none."""

    N_total: int
    N_nonemb: int
    N_matmul: int
    flops: int
    units: int

    @property
    def flops_per_unit(self) -> float:
        return self.flops / self.units


def size(config: FrozenConfigDict) -> Size:
    """Of a config. Raises what `launch.run.build.build` raises for one that cannot run."""
    one: Any = meshes.abstract(dict.fromkeys(parallel.AXES, 1))
    run = build(config, mesh=one)
    task = run.rule.task
    state = jax.eval_shape(lambda: run.rule.init(0))
    needed = shapes.model_flops(config, task, state, shapes.batch_of(config, task))
    units = shapes.tokens(config, task) or config.data.batch_size
    counts = record.count(run)
    return Size(counts.total, counts.nonemb, counts.matmul, needed.total, units)
