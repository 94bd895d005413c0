"""What every objective returns: sums with their counts, so that any split of a batch is exact.

An objective is a file with a frozen `Config`, the entries of a batch whose dimension 1 is positions
of a sequence, `SEQUENCE`, which may then be split over the mesh axis `context`, and
`sums(config, model, variables, batch, key, train) -> (Sums, variables)`; "loss" is among the sums.
The step adds totals and counts over microbatches and over the mesh and divides once. One that
defines `ONE_F_ONE_B` trains by that schedule too (`nn.parallel.pipeline.one_f_one_b`), on models
with the methods `stages`, `states`, `head`, `head_positions` and the property `head_weights`. One
with `CODES` predicts each token from those before it: its loss is a length of the text, in nats.
`TASKS` are those whose data sets it learns from, where that is not the one of its own name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

Sums = dict[str, tuple[jax.Array, jax.Array]]  # name -> (total, count), float32 scalars
Variables = Mapping[str, Any]  # "params" and, where a model has them, statistics
Batch = Mapping[str, jax.Array]


def apply(
    model: nn.Module,
    variables: Variables,
    *inputs: Any,
    key: jax.Array,
    train: bool,
    method: str | None = None,
) -> tuple[Any, Variables]:
    """`model.apply`, with statistics updated in training. Returns (output, variables)."""
    statistics = [name for name in variables if name != "params"]
    mutable = statistics if train and statistics else False
    rngs = {"dropout": key} if train else None
    out = model.apply(variables, *inputs, rngs=rngs, method=method, mutable=mutable)
    if mutable is False:
        return out, variables
    output, updated = out
    return output, {**variables, **updated}
