"""Random bits that depend on the global position of an element, not on the device that holds it.

Threefry (Salmon et al. 2011) is a function of a key and a counter. The counter here is the global
(row, column) index of the element, so any split of the array over any mesh gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.extend.random import threefry2x32_p

from nn.parallel import collectives


def positional_bits(
    key: jax.Array, shape: Sequence[int], split: Sequence[Sequence[str]]
) -> jax.Array:
    """uint32 bits of local `shape`.

    Args:
      key: a typed threefry key, the same on every shard.
      shape: local shape.
      split: per dimension, the mesh axes that split it, slowest first.
    """
    row: jax.Array = jnp.zeros((1,) * len(shape), jnp.uint32)
    column = row
    for dim, (size, axes) in enumerate(zip(shape, split, strict=True)):
        start = jnp.asarray(collectives.axis_index(axes) * size, jnp.uint32)
        index = start + jax.lax.broadcasted_iota(
            jnp.uint32, tuple(size if d == dim else 1 for d in range(len(shape))), dim
        )
        if dim == len(shape) - 1:
            column = index
        else:
            row = row * jnp.uint32(size * collectives.axis_size(axes)) + index
    axes_held = {axis for axes in split for axis in axes}
    words = [jax.random.key_data(key)[i] for i in (0, 1)] + [row, column]
    words = [collectives.vary(jnp.broadcast_to(w, shape), axes_held) for w in words]
    high, low = threefry2x32_p.bind(*words)
    return high ^ low


def keep_mask(
    key: jax.Array, rate: float, shape: Sequence[int], split: Sequence[Sequence[str]]
) -> jax.Array:
    """Boolean mask that is False with probability `rate`; arguments as in `positional_bits`."""
    bits = positional_bits(key, shape, split)
    return bits >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))
