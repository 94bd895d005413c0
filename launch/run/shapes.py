"""What a step needs to be traced where no data set is opened: its batch, and its FLOPs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from launch.run.build import loader, open_data
from nn.analysis import flops
from nn.analysis.flops import Flops
from nn.learning.task import Task

SHORT = 64  # positions of a row that attention does in one dense product, whatever it does else
Batch = Mapping[str, jax.ShapeDtypeStruct]


def batch_of(config: FrozenConfigDict, task: Task) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a training batch.

    Those of rows of tokens and of pictures follow from the config; other data sets are opened.
    """
    rows, data = config.data.batch_size, config.data
    shapes: dict[str, tuple[tuple[int, ...], Any]]
    if task.objective.SEQUENCE:
        kinds = {
            name: np.float32 if name == "mask" else np.int32 for name in task.objective.SEQUENCE
        }
        shapes = {name: ((rows, data.sequence_length), kind) for name, kind in kinds.items()}
    elif config.objective.name == "classify" and "image_size" in data:
        picture = (rows, data.image_size, data.image_size, data.channels)
        shapes = {
            "inputs": (picture, np.float32),
            "labels": ((rows,), np.int32),
            "mask": ((rows,), np.float32),
        }
    else:
        batch = loader(config, open_data(config, "train"), train=True).batch(0)
        shapes = {name: ((rows, *x.shape[1:]), x.dtype) for name, x in batch.items()}
    return {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}


def model_flops(config: FrozenConfigDict, task: Task, state: Any, batch: Batch) -> Flops:
    """What the model needs for one step: nothing twice, attention as dense products.

    Rows of tokens are counted short, where attention is one dense product however it is computed,
    and scaled: attention by the square of the length, the rest by the length.
    """
    options, times = task.objective_config, 1
    if task.objective.SEQUENCE:
        short = math.gcd(config.data.sequence_length, SHORT)
        times = config.data.sequence_length // short
        batch = {
            n: jax.ShapeDtypeStruct((x.shape[0], short), x.dtype) if task.is_sequence(n) else x
            for n, x in batch.items()
        }
        if hasattr(options, "chunks"):
            options = dataclasses.replace(options, chunks=1)

    def loss(params: Any, batch: Any) -> jax.Array:
        # Zeros made inside: the statistics of a model are constants to its gradient.
        variables = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state.variables)
        weights = {"params": params, **variables}
        key = jax.random.key(0)
        sums, _ = task.objective.sums(options, task.model, weights, batch, key, train=True)
        total: jax.Array = sums["loss"][0]
        return total

    plain = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
    counted = flops.train_step_flops(loss, state.params, plain).model
    scaled = {
        kind: count * times * (times if kind == "attention" else 1)
        for kind, count in counted.matmul.items()
    }
    return dataclasses.replace(counted, matmul=scaled)
