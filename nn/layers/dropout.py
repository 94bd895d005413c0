"""Dropout whose mask does not depend on the mesh (Srivastava et al. 2014)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from nn.parallel import BATCH_AXES, axis_index, axis_size, split_axis
from nn.parallel.random import keep_mask, key_here, rows_here
from nn.parallel.sequence import columns
from nn.parallel.tensor import sequence_axes


def split_axes(name: str | None) -> tuple[str, ...]:
    """Mesh axes that split a dimension of an activation.

    "batch"; "tokens": positions between blocks; "sequence": positions inside a block, where
    sequence parallelism has gathered them; else a logical name of the rules table.
    """
    if name == "batch":
        return BATCH_AXES
    if name == "tokens":
        return sequence_axes()
    if name == "sequence":
        return ("context",)
    axis = split_axis(name)
    return () if axis is None else (axis,)


def indices(name: str | None, size: int) -> jax.Array | None:
    """Global index of each local element of a dimension; None where they follow one another."""
    if name == "batch":
        return rows_here(size, BATCH_AXES)
    if name in ("tokens", "sequence") and axis_size("context") > 1:
        split = axis_size("tensor") if "tensor" in split_axes(name) else 1
        own = columns(size * split)
        return (
            jax.lax.dynamic_slice_in_dim(own, axis_index("tensor") * size, size)
            if split > 1
            else own
        )
    return None


class Dropout(nn.Module):
    """Zero a share `rate` of the elements in training and scale the rest by 1 / (1 - rate).

    names: one per dimension of the input (see `split_axes`), so that the mask is a function of
      the global position. Uses the "dropout" stream of random keys.
    """

    rate: float
    names: tuple[str | None, ...]
    train: bool = False

    def key(self) -> jax.Array:
        """The key of the mask."""
        return key_here(self.make_rng("dropout"))

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if not self.train or self.rate == 0.0:
            return x
        split = [split_axes(name) for name in self.names]
        places = [indices(name, size) for name, size in zip(self.names, x.shape, strict=True)]
        keep = keep_mask(self.key(), self.rate, x.shape, split, places)
        return jnp.where(keep, x / (1.0 - self.rate), jnp.zeros((), x.dtype))
