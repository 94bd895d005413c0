"""What a learning rule is given: the model, the objective, and where they run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from nn import parallel
from nn.learning import parametrisation, tune
from nn.parallel import sequence


@dataclasses.dataclass(frozen=True)
class Task:
    """A problem to learn, on a mesh.

    model: without its `train` flag set. example: positional inputs of `model.init`.
    objective: a file of nn/objectives, with its `Config`.
    mesh, rules: every device of the run, and which axis splits what.
    param_dtype: of the stored parameters. loss_scale: initial factor of the loss; above 1 it
      adapts (float16). stochastic_rounding: of updates to parameters of low precision.
    tune: which parameters are trained, and what is added to them.
    rows: what the size of the model makes of its first values, by path.
    """

    model: nn.Module
    example: tuple[Any, ...]
    objective: Any
    objective_config: Any
    optimizer: optax.GradientTransformation
    mesh: jax.sharding.Mesh
    rules: parallel.Rules = dataclasses.field(default_factory=parallel.Rules)
    param_dtype: Any = jnp.float32
    loss_scale: float = 1.0
    stochastic_rounding: bool = False
    tune: tune.Tune = dataclasses.field(default_factory=tune.Tune)
    rows: Mapping[str, parametrisation.Row] = dataclasses.field(default_factory=dict)

    def variables(self, seed: int) -> dict[str, Any]:
        """Initial parameters and statistics, each `Named`; the same numbers on every mesh."""
        found = self.model.init(jax.random.key(seed), *self.example)
        variables = {name: tree for name, tree in found.items() if name != "intermediates"}
        params = parametrisation.scaled(variables["params"], self.rows)
        return {**variables, "params": self.tune.with_factors(params, seed)}

    def variable_specs(self) -> dict[str, Any]:
        """A PartitionSpec per leaf of `variables`, by collection."""
        named = jax.eval_shape(lambda: self.variables(0))
        return parallel.specs(named, self.rules, self.mesh)

    def batch_specs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """PartitionSpecs of a batch: examples over the batch axes, positions over context."""
        return {
            name: parallel.batch_spec(self.mesh, x.ndim, 1 if self.is_sequence(name) else None)
            for name, x in batch.items()
        }

    def is_sequence(self, name: str) -> bool:
        """Whether dimension 1 of this entry of a batch is what `context` splits.

        Positions of a sequence, by the objective, or a dimension of space, by the model.
        """
        return name in (*self.objective.SEQUENCE, *getattr(self.model, "SEQUENCE", ()))

    def arrange(self, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The batch with its positions in the order in which the mesh holds them."""
        shards, layout = self.mesh.shape["context"], self.rules.layout
        found = dict(rows)
        for name in filter(self.is_sequence, rows if shards > 1 else ()):
            order = sequence.order(rows[name].shape[1], shards, layout)
            if layout != "contiguous":
                found[name] = rows[name][:, order]
        return found
