"""The compiled steps of a run: one update, one evaluation, and the way of a batch to the mesh."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from nn import parallel

Step = Callable[[Any, Any], Any]


def train_step(rule: Any) -> Step:
    """`(state, batch) -> (state, metrics)`; the old state's buffers are reused."""
    shardings = parallel.shardings(rule.task.mesh, rule.state_specs())
    return jax.jit(rule.update, donate_argnums=0, out_shardings=(shardings, None))


def eval_step(rule: Any) -> Step:
    """`(state, batch) -> sums`, each a (total, count) over the global batch."""
    return jax.jit(rule.evaluate)


def to_mesh(rule: Any, rows: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Global arrays from the rows of a batch that this process loads (`parallel.row_shares`)."""
    task = rule.task
    rows = task.arrange(rows)
    shardings: Any = parallel.shardings(task.mesh, task.batch_specs(rows))
    shares, count = parallel.row_shares(task.mesh)

    def place(x: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
        size = len(x) // len(shares)

        def piece(index: Any) -> np.ndarray:
            first, last, _ = index[0].indices(size * count)
            here = shares.index(first // size) * size + first % size
            return x[(slice(here, here + last - first), *index[1:])]

        return jax.make_array_from_callback((size * count, *x.shape[1:]), sharding, piece)

    return {name: place(x, shardings[name]) for name, x in rows.items()}
