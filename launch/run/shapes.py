"""What a step needs to be traced where no data set is opened: its batch, and its FLOPs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from ml_collections import FrozenConfigDict

from launch.data.loader import Loader
from launch.run.build import loader, open_data
from nn.analysis import flops
from nn.analysis.flops import Flops
from nn.learning import tune
from nn.learning.task import Task
from nn.parallel.mesh import compiled_for

SHORT = 64  # positions of a row that attention does in one dense product, whatever it does else
Batch = Mapping[str, jax.ShapeDtypeStruct]


def batch_of(config: FrozenConfigDict, task: Task) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a training batch.

    Those of rows of tokens and of pictures follow from the config; other data sets are opened.
    """
    rows, data = config.data.batch_size, config.data
    shapes: dict[str, tuple[tuple[int, ...], Any]]
    if task.objective.SEQUENCE and task.example[0].dtype == jnp.int32:
        kinds = {
            name: np.float32 if name == "mask" else np.int32 for name in task.objective.SEQUENCE
        }
        shapes = {name: ((rows, data.sequence_length), kind) for name, kind in kinds.items()}
    elif config.objective.name == "classify" and "image_size" in data and "channels" in data:
        picture = (rows, data.image_size, data.image_size, data.channels)
        shapes = {
            "inputs": (picture, np.float32),
            "labels": ((rows,), np.int32),
            "mask": ((rows,), np.float32),
        }
    else:
        return of_rows(config, loader(config, open_data(config, "train"), train=True))
    return {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}


def tokens(config: FrozenConfigDict, task: Task) -> int:
    """Of a training batch, those that are predicted; 0 where rows have no positions."""
    return config.data.batch_size * config.data.sequence_length if task.objective.SEQUENCE else 0


def of_rows(config: FrozenConfigDict, train: Loader) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a training batch: those of the rows that a loader gives."""
    return {
        name: jax.ShapeDtypeStruct((config.data.batch_size, *x.shape[1:]), x.dtype)
        for name, x in train.batch(0).items()
    }


def tree_bytes(tree: Any) -> int:
    """Bytes of abstract arrays."""
    return sum(math.prod(x.shape) * _width(x) for x in jax.tree.leaves(tree))


def local_bytes(tree: Any, specs: Any, sizes: Mapping[str, int]) -> int:
    """Bytes of one device's shares of abstract arrays; sizes: of the axes of the mesh."""
    leaves = jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, P))
    total = 0
    for x, spec in zip(jax.tree.leaves(tree), leaves, strict=True):
        parts = [_parts(entry, sizes) for entry in spec] + [1] * x.ndim
        total += math.prod(-(-n // p) for n, p in zip(x.shape, parts, strict=False)) * _width(x)
    return total


def _parts(entry: Any, sizes: Mapping[str, int]) -> int:
    names = entry if isinstance(entry, tuple) else () if entry is None else (entry,)
    return math.prod(sizes[name] for name in names)


def _width(x: Any) -> int:
    return int(np.dtype(x.dtype).itemsize)


def model_flops(config: FrozenConfigDict, task: Task, state: Any, batch: Batch) -> Flops:
    """What the model needs for one step: nothing twice, attention as dense products.

    Rows of tokens are counted short, where attention is one dense product however it is computed,
    and scaled: attention by the square of the length, the rest by the length. Rows of sound are
    counted as they are. Traced as for a TPU, on any machine: there experts multiply the rows that
    there are, where CPUs fill up blocks.
    """
    options, times = task.objective_config, 1
    lengths = {x.shape[1] for name, x in batch.items() if task.is_sequence(name)}
    if task.objective.SEQUENCE and lengths == {config.data.sequence_length}:
        short = math.gcd(config.data.sequence_length, SHORT)
        times = config.data.sequence_length // short
        batch = {
            n: jax.ShapeDtypeStruct((x.shape[0], short), x.dtype) if task.is_sequence(n) else x
            for n, x in batch.items()
        }
        if hasattr(options, "chunks"):
            options = dataclasses.replace(options, chunks=1)

    trained, frozen = task.tune.split(state.params)

    def loss(params: Any, batch: Any) -> jax.Array:
        # Zeros made inside: statistics and what is not trained are constants to the gradient.
        fixed = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (frozen, state.variables))
        weights = {"params": tune.join(params, fixed[0]), **fixed[1]}
        key = jax.random.key(0)
        sums, _ = task.objective.sums(options, task.model, weights, batch, key, train=True)
        total: jax.Array = sums["loss"][0]
        return total

    plain = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
    with compiled_for("tpu"):
        counted = flops.train_step_flops(loss, trained, plain).model
    scaled = {
        kind: count * times * (times if kind == "attention" else 1)
        for kind, count in counted.matmul.items()
    }
    return dataclasses.replace(counted, matmul=scaled)
