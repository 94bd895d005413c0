"""Learning by gradient descent: an objective's gradient over the mesh, then an Optax update.

The gradient is taken inside one `shard_map`, where the type system inserts every sum over the mesh;
the update runs outside it, under jit, on the sharded global arrays, so any Optax chain is right.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import PartitionSpec as P

from nn import parallel
from nn.learning import tune
from nn.learning.task import Task
from nn.objectives.sums import Batch, Sums
from nn.optim.rounding import apply_updates_stochastically
from nn.parallel import BATCH_AXES
from nn.parallel.mesh import AXES, SEQUENCE_AXES
from nn.parallel.optimizer import optimizer_specs
from nn.parallel.weight import spread


@dataclasses.dataclass(frozen=True)
class Config:
    accumulate: int = 1  # microbatches per update; the loss is that of the whole batch
    ema_decay: float = 0.0  # of a running average of the parameters; 0: none is kept
    skip_nonfinite: bool = True  # leave the parameters alone where the gradient is not finite
    max_skipped: int = 10  # updates skipped in a row before the run is given up
    scale_period: int = 2000  # finite steps after which the factor of a float16 loss doubles

    def __post_init__(self) -> None:
        for name in ("accumulate", "max_skipped", "scale_period"):
            if getattr(self, name) < 1:
                raise ValueError(f"rule.{name}={getattr(self, name)}: must be at least 1")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"rule.ema_decay={self.ema_decay}: must be in [0, 1)")


class State(struct.PyTreeNode):
    """All that training changes: one pytree, of the same values on every mesh."""

    step: jax.Array  # updates done, int32
    params: Any
    opt_state: Any
    variables: Any  # statistics of the model, by collection; {} for most
    average: Any  # running average of those params that are trained, or None
    key: jax.Array  # uint32 data of the key from which every step's noise is derived
    skipped: jax.Array  # updates skipped in a row, int32
    scale: jax.Array  # factor of the loss, float32
    good_steps: jax.Array  # finite steps since the factor changed, int32


@dataclasses.dataclass(frozen=True)
class Rule:
    """`init` makes the state of a task, `update` is one step, `evaluate` measures one batch."""

    config: Config
    task: Task

    def __post_init__(self) -> None:
        k = self.config.accumulate
        if k > 1 and getattr(self.task.objective, "WHOLE_BATCH", False):
            raise ValueError(
                f"rule.accumulate={k}: the examples of a batch are compared with each other, so "
                f"its parts cannot be added up; nearest: rule.accumulate=1"
            )

    def init(self, seed: int) -> State:
        """The state before the first step."""
        variables = parallel.unbox(self.task.variables(seed))
        dtype = self.task.param_dtype
        params = jax.tree.map(lambda x: x.astype(dtype), variables.pop("params"))
        trained, _ = self.task.tune.split(params)
        return State(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=self.task.optimizer.init(trained),
            variables=variables,
            average=jax.tree.map(jnp.copy, trained) if self.config.ema_decay else None,
            key=jax.random.key_data(jax.random.fold_in(jax.random.key(seed), 1)),
            skipped=jnp.zeros((), jnp.int32),
            scale=jnp.asarray(self.task.loss_scale, jnp.float32),
            good_steps=jnp.zeros((), jnp.int32),
        )

    def state_specs(self) -> State:
        """A PartitionSpec per leaf of the state."""
        shapes = jax.eval_shape(lambda: self.init(0))
        variables = self.task.variable_specs()
        params = variables.pop("params")
        task = self.task
        (abstract, _), (trained, _) = (task.tune.split(tree) for tree in (shapes.params, params))
        return jax.tree.map(lambda _: P(), shapes).replace(
            params=params,
            opt_state=optimizer_specs(task.optimizer, abstract, trained, task.mesh),
            variables=variables,
            average=trained if self.config.ema_decay else None,
        )

    def update(self, state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        """One step: (state, batch of global arrays) -> (state, metrics).

        Metrics are scalars: the objective's means, "grad_norm", "skipped" (in a row).
        """
        return self.apply(state, *self.gradients(state, batch))

    def apply(
        self, state: State, gradients: Any, sums: Sums, variables: Any
    ) -> tuple[State, dict[str, jax.Array]]:
        """The step that follows from what `gradients` found: (state, metrics)."""
        old, frozen = self.task.tune.split(state.params)
        means = {name: total / jnp.maximum(count, 1) for name, (total, count) in sums.items()}
        norm = optax.global_norm(gradients)
        optimizer, key = self.task.optimizer, jax.random.wrap_key_data(state.key)
        updates, opt_state = optimizer.update(gradients, state.opt_state, old)
        if self.task.stochastic_rounding:
            key = jax.random.fold_in(jax.random.fold_in(key, 2), state.step)
            params = apply_updates_stochastically(old, updates, key)
        else:
            params = optax.apply_updates(old, updates)
        average, keep = state.average, self.config.ema_decay
        if keep:
            average = jax.tree.map(lambda a, p: keep * a + (1 - keep) * p, average, params)
        new = state.replace(
            params=tune.join(params, frozen),
            opt_state=opt_state,
            variables=variables,
            average=average,
        )
        finite = jnp.isfinite(norm) & jnp.isfinite(means["loss"])
        if self.config.skip_nonfinite:
            new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        new = self._count(new, state, finite)
        return new, means | {"grad_norm": norm, "skipped": new.skipped.astype(jnp.float32)}

    def _count(self, new: State, old: State, finite: jax.Array) -> State:
        """Step, skips in a row, and the loss scale (Micikevicius et al. 2018, section 3.2)."""
        good, scale = jnp.where(finite, old.good_steps + 1, 0), old.scale
        if self.task.loss_scale > 1:
            grow = good >= self.config.scale_period
            scale = jnp.where(finite, jnp.where(grow, scale * 2, scale), scale / 2)
            scale = jnp.clip(scale, 1.0, 2.0**24)
            good = jnp.where(grow, 0, good)
        skipped = jnp.where(finite, 0, old.skipped + 1)
        return new.replace(step=old.step + 1, skipped=skipped, scale=scale, good_steps=good)

    def gradients(self, state: State, batch: Batch) -> tuple[Any, Sums, Any]:
        """Gradients of the mean loss by what is trained, global sums, and new statistics; all
        global arrays."""
        variables = self.task.variable_specs()
        params = variables.pop("params")
        run = parallel.spmd(
            self._local_gradients,
            self.task.mesh,
            self.task.rules,
            in_specs=(params, variables, self.task.batch_specs(batch), P(), P(), P()),
            out_specs=(self.task.tune.split(params)[0], P(), variables),
        )
        total, sums, variables = run(
            state.params, state.variables, batch, state.key, state.step, state.scale
        )
        divisor = state.scale * jnp.maximum(sums["loss"][1], 1)
        return jax.tree.map(lambda g: g / divisor.astype(g.dtype), total), sums, variables

    def evaluate(self, state: State, batch: Batch) -> Sums:
        """Global sums of the objective on one batch, without dropout; by the averaged parameters
        where an average is kept."""
        variables = self.task.variable_specs()
        params = variables.pop("params")
        in_specs = (params, variables, self.task.batch_specs(batch))
        run = parallel.spmd(self._local_sums, self.task.mesh, self.task.rules, in_specs, P())
        return run(self.weights(state), state.variables, batch)

    def weights(self, state: State) -> Any:
        """The parameters to evaluate and to sample with."""
        if state.average is None:
            return state.params
        return tune.join(state.average, self.task.tune.split(state.params)[1])

    def _local_sums(self, params: Any, variables: Any, batch: Batch) -> Sums:
        weights = {"params": params, **variables}
        objective, options = self.task.objective, self.task.objective_config
        sums, _ = objective.sums(
            options, self.task.model, weights, batch, jax.random.key(0), train=False
        )
        return jax.tree.map(lambda x: parallel.psum(x, AXES), sums)

    def _local_gradients(
        self, params: Any, variables: Any, batch: Batch, key: jax.Array, step: Any, scale: Any
    ) -> tuple[Any, Sums, Any]:
        """On one shard: its share of every gradient, already summed where it is replicated."""
        key = jax.random.fold_in(jax.random.wrap_key_data(key), step)
        objective, options = self.task.objective, self.task.objective_config
        params, frozen = self.task.tune.split(params)

        def loss(params: Any, variables: Any, batch: Batch, key: jax.Array) -> Any:
            weights = {"params": tune.join(params, frozen), **variables}
            sums, new = objective.sums(options, self.task.model, weights, batch, key, train=True)
            return sums["loss"][0] * scale, (sums, {name: new[name] for name in variables})

        gradient = jax.grad(loss, has_aux=True)
        if self.config.accumulate == 1:
            gradients, (sums, variables) = gradient(params, variables, batch, key)
        else:
            gradients, sums, variables = self._accumulate(gradient, params, variables, batch, key)
        return gradients, jax.tree.map(lambda x: parallel.psum(x, AXES), sums), variables

    def _accumulate(
        self, gradient: Any, params: Any, variables: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, Sums, Any]:
        """Sum over microbatches, then one reduction over the mesh.

        Every k-th example goes to the same microbatch, so that each holds the same examples on
        any mesh. The parameters are typed as varying before the loop, which keeps the sum over
        the mesh out of it; the transpose of that cast is the reduction after it.
        """
        k = self.config.accumulate

        def pieces(x: jax.Array) -> jax.Array:
            if x.shape[0] % k:
                raise ValueError(
                    f"rule.accumulate={k} does not divide the {x.shape[0]} examples of a shard; "
                    f"nearest multiple: {max(1, round(x.shape[0] / k)) * k}"
                )
            return x.reshape(-1, k, *x.shape[1:]).swapaxes(0, 1)

        axes = (*BATCH_AXES, *SEQUENCE_AXES)
        apart, reduce = jax.vjp(lambda p: spread(p, axes), params)

        def body(carry: Any, piece: Any) -> Any:
            total, variables = carry
            index, part = piece
            noise = jax.random.fold_in(key, index)
            grads, (sums, variables) = gradient(apart, variables, part, noise)
            return (jax.tree.map(jnp.add, total, grads), variables), sums

        zeros = jax.tree.map(jnp.zeros_like, apart)
        parts = (jnp.arange(k), {name: pieces(x) for name, x in batch.items()})
        (total, variables), sums = jax.lax.scan(body, (zeros, variables), parts)
        return reduce(total)[0], jax.tree.map(lambda x: x.sum(axis=0), sums), variables
