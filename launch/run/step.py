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
    """Global arrays from this process's rows of a batch."""
    task = rule.task
    rows = task.arrange(rows)
    shardings: Any = parallel.shardings(task.mesh, task.batch_specs(rows))
    return {
        name: jax.make_array_from_process_local_data(shardings[name], x) for name, x in rows.items()
    }
