"""Borders of a dimension that `context` splits: what a convolution or pooling reads next door.

A window of the whole array reads past the ends of a shard. Each shard is given the elements before
and after its own that its windows reach, from as many neighbours as it takes; beyond the ends of
the whole array lies the padding. (Dryden et al. 2019, "Improving strong-scaling of CNN training by
exploiting finer-grained parallelism".)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from nn.parallel import collectives
from nn.parallel.sequence import need_order


def exchange(x: jax.Array, dim: int, before: int, after: int, fill: float = 0.0) -> jax.Array:
    """x with `before` more elements ahead of its own along `dim` and `after` behind.

    before, after: of any size; a negative one cuts elements off. fill: beyond the ends.
    """
    size = x.shape[dim]
    ahead = _neighbours(x, dim, before, 1, fill)
    behind = _neighbours(x, dim, after, -1, fill)
    own = lax.slice_in_dim(x, max(-before, 0), size - max(-after, 0), axis=dim)
    return jnp.concatenate([*reversed(ahead), own, *behind], axis=dim)


def _neighbours(x: jax.Array, dim: int, count: int, step: int, fill: float) -> list[jax.Array]:
    """The `count` elements next to x along `dim`, the nearest shard's first.

    step: 1 for those before x, which earlier shards pass on, and -1 for those after it.
    """
    size, pieces = x.shape[dim], []
    index, shards = collectives.axis_index("context"), collectives.axis_size("context")
    for hop in range(1, -(-count // size) + 1):
        wanted = min(count - (hop - 1) * size, size)
        start = size - wanted if step > 0 else 0
        piece = lax.slice_in_dim(x, start, start + wanted, axis=dim)
        if hop < shards:
            inside = index >= hop if step > 0 else index < shards - hop
            received = collectives.shift(piece, "context", step * hop)
            pieces.append(jnp.where(inside, received, jnp.asarray(fill, x.dtype)))
        else:
            pieces.append(jnp.full_like(piece, fill))
    return pieces


def window_input(
    x: jax.Array,
    dim: int,
    window: int,
    stride: int,
    padding: tuple[int, int],
    dilation: int = 1,
    fill: float = 0.0,
) -> jax.Array:
    """What this shard's windows along `dim` read, padding included: they need no more padding.

    window, stride, padding, dilation: of the whole array. The outputs of shard i are the i-th part
    of all of them.
    Raises:
      ValueError: positions are not in order, or the outputs are not cut where the inputs are: the
        stride must divide the elements of a shard and give 1 / stride of all elements.
    """
    need_order("a convolution or pooling over space")
    x = collectives.vary(x, ["context"])
    size, shards = x.shape[dim], collectives.axis_size("context")
    reach = dilation * (window - 1) + 1
    outputs = (size * shards + sum(padding) - reach) // stride + 1
    if size % stride or outputs * stride != size * shards:
        raise ValueError(
            f"mesh.context={shards} gives a shard {size} of {size * shards} elements: a window of "
            f"{reach} with stride {stride} and padding {padding} makes {outputs} outputs, which "
            f"must be {size * shards} / {stride}, and the stride must divide {size}"
        )
    return exchange(x, dim, padding[0], reach - stride - padding[0], fill)
