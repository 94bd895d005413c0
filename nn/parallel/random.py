"""Random bits that depend on the global position of an element, not on the device that holds it.

Threefry (Salmon et al. 2011) is a function of a key and a counter. The counter here is the global
(row, column) index of the element, so any split of the array over any mesh gives the same numbers.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.random import threefry2x32_p

from nn.parallel import collectives


class Place(NamedTuple):
    """Where the code that is being traced stands in the model and in the batch.

    layer: number of the layer of a stack, folded into the key of its noise; None outside of one.
    part, parts: which part of the batch the rows are, of how many: rows j parts + part of each
      shard, j = 0, 1, ...
    """

    layer: Any = None
    part: Any = 0
    parts: int = 1


_PLACE: contextvars.ContextVar[Place] = contextvars.ContextVar("place", default=Place())


@contextlib.contextmanager
def place(**changes: Any) -> Iterator[None]:
    """Noise traced inside this block is that of another `Place`."""
    token = _PLACE.set(_PLACE.get()._replace(**changes))
    try:
        yield
    finally:
        _PLACE.reset(token)


def layer_here() -> jax.Array | None:
    """The number of the layer that is being traced; None outside of a stack."""
    layer: jax.Array | None = _PLACE.get().layer
    return layer


def is_part() -> bool:
    """Whether the rows here are one part of a batch whose other parts are elsewhere."""
    return _PLACE.get().parts > 1


def key_here(key: jax.Array) -> jax.Array:
    """The key of the layer that is being traced."""
    layer = _PLACE.get().layer
    return key if layer is None else jax.random.fold_in(key, layer)


def rows_here(size: int, axes: Sequence[str]) -> jax.Array:
    """Global numbers of the examples here, (size,) uint32."""
    _, part, parts = _PLACE.get()
    start = collectives.axis_index(axes) * size * parts + part
    return jnp.asarray(start, jnp.uint32) + parts * jnp.arange(size, dtype=jnp.uint32)


def positional_bits(
    key: jax.Array,
    shape: Sequence[int],
    split: Sequence[Sequence[str]],
    indices: Sequence[jax.Array | None] | None = None,
) -> jax.Array:
    """uint32 bits of local `shape`.

    Args:
      key: a typed threefry key, the same on every shard.
      shape: local shape.
      split: per dimension, the mesh axes that split it, slowest first.
      indices: per dimension, the global index of each local element, where that is not the
        shard's start plus 0, 1, ...
    """
    row: jax.Array = jnp.zeros((1,) * len(shape), jnp.uint32)
    column = row
    for dim, (size, axes) in enumerate(zip(shape, split, strict=True)):
        index = indices[dim] if indices is not None else None
        if index is None:
            start = jnp.asarray(collectives.axis_index(axes) * size, jnp.uint32)
            index = start + jnp.arange(size, dtype=jnp.uint32)
        index = index.astype(jnp.uint32).reshape(
            [size if d == dim else 1 for d in range(len(shape))]
        )
        if dim == len(shape) - 1:
            column = index
        else:
            row = row * jnp.uint32(size * collectives.axis_size(axes)) + index
    row = collectives.vary(row, {axis for axes in split for axis in axes})
    return bits_at(jax.random.key_data(key), row, column)


def bits_at(key_data: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
    """The uint32 bits of elements by their global row and column, two arrays that broadcast.

    Of an array of several dimensions the last is the column, and the others number the rows.
    """
    shape = jnp.broadcast_shapes(row.shape, column.shape)
    words = [jnp.broadcast_to(word, shape) for word in (key_data[0], key_data[1], row, column)]
    held = {axis for word in words for axis in collectives.varying(word)}
    high, low = threefry2x32_p.bind(*(collectives.vary(word, held) for word in words))
    return high ^ low


def kept(bits: jax.Array, rate: float) -> jax.Array:
    """False with probability `rate`."""
    return bits >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))


def keep_mask(
    key: jax.Array,
    rate: float,
    shape: Sequence[int],
    split: Sequence[Sequence[str]],
    indices: Sequence[jax.Array | None] | None = None,
) -> jax.Array:
    """Boolean mask that is False with probability `rate`; arguments as in `positional_bits`."""
    return kept(positional_bits(key, shape, split, indices), rate)
