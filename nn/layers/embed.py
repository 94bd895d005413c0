"""Token embeddings and the output head, with a vocabulary that may be split over the mesh.

Legend: B batch, T positions, D residual width, V vocabulary (v: this shard's part).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from nn import initializers
from nn.parallel import Layer, einsum, enter, leave, pipeline, split_axis
from nn.parallel import axis_index as shard_index
from nn.parallel.collectives import all_gather
from nn.parallel.tensor import leave_sum, sequence_is_split
from nn.parallel.weight import Weight


class Embed(Layer):
    """A table of `size` rows, one per token; also the head when input and output are tied.

    dtype: of the rows that are looked up: the compute dtype of the model starts here.
    """

    size: int
    features: int
    dtype: jnp.dtype = jnp.float32
    table_init: initializers.Initializer = initializers.normal(0.02)

    def setup(self) -> None:
        self.table = self.weight(
            "embedding", (self.size, self.features), ("vocab", "embed"), self.table_init
        )

    def __call__(self, ids_BT: jax.Array) -> jax.Array:
        """Rows of the table, (B, T) -> (B, T, D) (Press & Wolf 2017 for tied use).

        With a split vocabulary each shard looks up its own rows and the others' are zero, so a
        sum over the shards (a reduce-scatter under sequence parallelism) completes the lookup.
        """
        rows_vD = self.table.whole(like=jnp.zeros_like(ids_BT, self.dtype))
        axis = self.table.split_over(0)
        if axis is None:
            return leave(jnp.take(rows_vD, ids_BT, axis=0))
        local_BT = ids_BT - shard_index(axis) * rows_vD.shape[0]
        here_BT = (local_BT >= 0) & (local_BT < rows_vD.shape[0])
        x_BTD = jnp.take(rows_vD, jnp.where(here_BT, local_BT, 0), axis=0)
        x_BTD = jnp.where(here_BT[..., None], x_BTD, jnp.zeros((), x_BTD.dtype))
        return leave_sum(x_BTD, axis)

    def attend(self, x_BTD: jax.Array, table: Weight | None = None) -> jax.Array:
        """Logits of this shard's part of the vocabulary, (B, T, D) -> (B, T, v).

        table: `self.table`, if it is gathered already.
        """
        return einsum("btd,vd->btv", x_BTD, table or self.table)


class Head(Layer):
    """Output projection of its own, (B, T, D) -> (B, T, v)."""

    size: int
    features: int
    table_init: initializers.Initializer = initializers.normal(0.02)

    def setup(self) -> None:
        shape = (self.features, self.size)
        self.kernel = self.weight("kernel", shape, ("embed", "vocab"), self.table_init)

    def __call__(self, x_BTD: jax.Array, kernel: Weight | None = None) -> jax.Array:
        """kernel: `self.kernel`, if it is gathered already."""
        return einsum("btd,dv->btv", x_BTD, kernel or self.kernel)


def head_input(x_BTD: jax.Array, size: int) -> jax.Array:
    """What the head of a vocabulary of `size` works on here.

    All positions where the vocabulary is split over `tensor`. Where it is not, because the shards
    do not divide it, they share the positions out instead (those of sequence parallelism).
    """
    return x_BTD if split_axis("vocab", size) is None else enter(x_BTD, "vocab")


def head_positions(x_BT: jax.Array, size: int) -> jax.Array:
    """Of something with one entry per position, such as the targets, those of `head_input`.

    On stages of a pipeline it goes the way of the states: see `pipeline.share`.
    """
    if pipeline.stages() == 1:
        return leave(x_BT) if split_axis("vocab", size) is None else x_BT
    x_BT = pipeline.share(leave(x_BT), states=False)
    gathered = sequence_is_split() and split_axis("vocab", size) is not None
    return all_gather(x_BT, "tensor", 1, same=True) if gathered else x_BT


class PositionTable(Layer):
    """Learned absolute positions (Vaswani et al. 2017, section 3.5), (B, T) -> (B, T, D)."""

    length: int
    features: int
    table_init: initializers.Initializer = initializers.normal(0.02)

    @nn.compact
    def __call__(self, positions_BT: jax.Array, dtype: jnp.dtype) -> jax.Array:
        table = self.weight(
            "embedding", (self.length, self.features), (None, "embed"), self.table_init
        )
        positions_BT = leave(positions_BT)
        return jnp.take(table.whole(like=jnp.zeros_like(positions_BT, dtype)), positions_BT, axis=0)
