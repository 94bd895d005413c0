"""The sharded convolution, the twin of the sharded einsum.

A kernel split along its output channels gives split channels, one split along its input channels
gives partial sums that are added here; so two convolutions in a row, column then row, need one
sum over `tensor`, as two dense layers do (Shoeybi et al. 2019).

Legend: B batch, S a spatial size (S' after), K the kernel's, I and O channels in and out, s stride,
d dilation, l padding before, p and q a position before and after.
"""

from __future__ import annotations

import math
import string
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from nn.parallel import collectives
from nn.parallel.weight import Weight, bound_axis

Pairs = Sequence[tuple[int, int]]  # (before, after) of each spatial dimension


def conv(
    x: jax.Array,
    weight: Weight,
    strides: Sequence[int],
    padding: Pairs,
    dilation: Sequence[int],
    groups: int = 1,
    input_dilation: Sequence[int] | None = None,
) -> jax.Array:
    """Cross-correlation of x (B, S..., I) with a kernel (K..., I / groups, O) that may be split.

    Args:
      x: activations; their dtype is that of the product. They hold this shard's channels where
        the kernel's input channels are split or where there are groups, all of them elsewhere.
      weight: fsdp dimensions are gathered; split input channels are summed over.
      groups: of the whole convolution; split output channels split the groups too.
      input_dilation: zeros between elements of x, plus one (transposed convolution).
    Returns:
      (B, S'..., O), S' = (d_in (S - 1) + 1 + padding - d (K - 1) - 1) // s + 1.
    Raises:
      ValueError: groups with split input channels, or groups that the split does not divide.
    """
    kernel = weight.whole(like=x)
    summed, split = weight.split_over(kernel.ndim - 2), weight.split_over(kernel.ndim - 1)
    if groups > 1 and summed is not None:
        raise ValueError(f"a convolution of {groups} groups cannot have its input channels summed")
    if groups > 1 and split is not None:
        shards = collectives.axis_size(split)
        if groups % shards:
            raise ValueError(
                f"{groups} groups of channels do not divide over mesh.{split}={shards}"
            )
        groups //= shards
    widened = tuple(input_dilation or (1,) * len(strides))
    small = math.prod(x.shape[1:-1]) < math.prod(kernel.shape[:-2])
    if small and groups == 1 and set(widened) == {1}:
        y = _dense(x, kernel, strides, padding, dilation)
    else:
        y = lax.conv_general_dilated(
            x,
            kernel,
            tuple(strides),
            tuple(padding),
            lhs_dilation=widened,
            rhs_dilation=tuple(dilation),
            dimension_numbers=_dimensions(len(strides)),
            feature_group_count=groups,
        )
    return y if summed is None else collectives.psum(y, summed)


def gather_channels(x: jax.Array, name: str, same: bool = False) -> jax.Array:
    """All channels of an activation whose last dimension is split along logical `name`.

    same: every shard goes on with the same work (see `nn.parallel.collectives.all_gather`).
    """
    axis = bound_axis(name)
    if axis is None or axis == "fsdp":
        return x
    return collectives.all_gather(x, axis, x.ndim - 1, same)


def _dimensions(rank: int) -> tuple[str, str, str]:
    space = "XYZ"[:rank]
    return f"N{space}C", f"{space}IO", f"N{space}C"


def _dense(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Pairs, dilation: Sequence[int]
) -> jax.Array:
    """The convolution as one matrix product, for an input with fewer positions than the kernel.

    y[q] = sum over p of x[p] kernel[(p - s q + l) / d]. Products with padding, most of them where
    the input is small, are left out; and XLA, which swaps kernel and input here and on CPUs then
    falls back to a naive loop, is not asked for a convolution.
    """
    rank = len(strides)
    table = kernel
    for i in range(rank):
        table = _unroll(table, 2 * i, x.shape[1 + i], strides[i], padding[i], dilation[i])
    q, p = string.ascii_lowercase[:rank], string.ascii_lowercase[rank : 2 * rank]
    pairs = "".join(a + b for a, b in zip(q, p, strict=True))
    return jnp.einsum(f"Z{p}I,{pairs}IO->Z{q}O", x, table)


def _unroll(
    kernel: jax.Array, dim: int, size: int, stride: int, padding: tuple[int, int], dilation: int
) -> jax.Array:
    """Replace a dimension of taps (K) by output and input positions (S', S)."""
    before, after = padding
    extent = dilation * (kernel.shape[dim] - 1) + 1
    last = (size + before + after - extent) // stride  # output position
    # Output q reads taps l - s q, ..., l - s q + S - 1 (those outside the kernel are zero): put
    # the first of the last output at 0, and one beyond the last of output 0 at the end.
    margins = [(0, 0, 0)] * kernel.ndim
    margins[dim] = (stride * last - before, before + size - extent, dilation - 1)
    taps = lax.pad(kernel, jnp.zeros((), kernel.dtype), margins)
    rows = [
        lax.slice_in_dim(taps, stride * (last - q), stride * (last - q) + size, axis=dim)
        for q in range(last + 1)
    ]
    return jnp.stack(rows, axis=dim)
