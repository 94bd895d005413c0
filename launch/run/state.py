"""The sharded state of a run: its abstract form, and its first value."""

from __future__ import annotations

from typing import Any

import jax

from nn import parallel


def abstract_state(rule: Any) -> Any:
    """Shapes, dtypes and shardings of the state: what a restore or a compilation needs."""
    shapes = jax.eval_shape(lambda: rule.init(0))
    shardings = parallel.shardings(rule.task.mesh, rule.state_specs())
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def initial_state(rule: Any, seed: int) -> Any:
    """The first state, each leaf made where it lives; the same numbers on every mesh."""
    shardings = parallel.shardings(rule.task.mesh, rule.state_specs())
    return jax.jit(rule.init, static_argnums=0, out_shardings=shardings)(seed)
