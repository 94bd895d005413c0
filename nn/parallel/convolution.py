"""The sharded convolution, the twin of the sharded einsum.

A kernel split along its output channels gives split channels, one split along its input channels
gives partial sums that are added here; so two convolutions in a row, column then row, need one
sum over `tensor`, as two dense layers do (Shoeybi et al. 2019).

Legend: B batch, S a spatial size (S' after), K the kernel's, I and O channels in and out, s stride,
d dilation, l padding before, p and q a position before and after.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from nn.parallel import collectives, halo
from nn.parallel.weight import Weight, split_axis

Pairs = Sequence[tuple[int, int]]  # (before, after) of each spatial dimension


def conv(
    x: jax.Array,
    weight: Weight,
    strides: Sequence[int],
    padding: Pairs,
    dilation: Sequence[int],
    groups: int = 1,
    input_dilation: Sequence[int] | None = None,
    over_context: bool = False,
) -> jax.Array:
    """Cross-correlation of x (B, S..., I) with a kernel (K..., I / groups, O) that may be split.

    Args:
      x: activations; their dtype is that of the product. They hold this shard's channels where
        the kernel's input channels are split or where there are groups, all of them elsewhere.
      weight: fsdp dimensions are gathered; split input channels are summed over.
      groups: of the whole convolution; split output channels split the groups too.
      input_dilation: zeros between elements of x, plus one (transposed convolution).
      over_context: `context` splits the first spatial dimension; borders come from the neighbours.
        Padding is that of the whole.
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
    if over_context and collectives.bound(["context"]):
        x = halo.window_input(x, 1, kernel.shape[0], strides[0], padding[0], dilation[0])
        padding = ((0, 0), *padding[1:])
    y = None
    if groups == 1 and input_dilation is None:
        y = _by_taps(x, kernel, strides, padding, dilation)
    if y is None:
        y = lax.conv_general_dilated(
            x,
            kernel,
            tuple(strides),
            tuple(padding),
            lhs_dilation=input_dilation,
            rhs_dilation=tuple(dilation),
            dimension_numbers=_dimensions(len(strides)),
            feature_group_count=groups,
        )
    return y if summed is None else collectives.psum(y, summed)


def gather_channels(x: jax.Array, name: str, same: bool = False) -> jax.Array:
    """All channels of an activation whose last dimension is split along logical `name`.

    same: every shard goes on with the same work (see `nn.parallel.collectives.all_gather`).
    """
    axis = split_axis(name)
    if axis is None:
        return x
    return collectives.all_gather(x, axis, x.ndim - 1, same)


def _dimensions(rank: int) -> tuple[str, str, str]:
    space = "XYZ"[:rank]
    return f"N{space}C", f"{space}IO", f"N{space}C"


class _Reach(NamedTuple):
    """What one tap of a kernel meets along one dimension: outputs first..last - 1, from start."""

    start: int
    first: int
    last: int


def _reaches(
    size: int, taps: int, outputs: int, stride: int, before: int, dilation: int
) -> list[_Reach | None]:
    """Per tap; None where it only ever meets padding. Output q reads s q + d tap - l."""
    found: list[_Reach | None] = []
    for tap in range(taps):
        offset = dilation * tap - before
        first = max(0, -(offset // stride))
        last = min(outputs, (size - 1 - offset) // stride + 1)
        found.append(_Reach(stride * first + offset, first, last) if first < last else None)
    return found


def _by_taps(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Pairs, dilation: Sequence[int]
) -> jax.Array | None:
    """The sum over taps of what each one reads times its matrix (I, O), where that pays.

    It does where there are fewer outputs than taps: most products of the convolution would be with
    padding, and XLA swaps kernel and input and on CPUs falls back to a naive loop (20 times
    slower).
    A strided 1x1 convolution is one product too. None elsewhere.
    """
    sizes, window = x.shape[1:-1], kernel.shape[:-2]
    outputs = [
        (size + sum(pads) - d * (k - 1) - 1) // s + 1
        for size, pads, k, s, d in zip(sizes, padding, window, strides, dilation, strict=True)
    ]
    pointwise = math.prod(window) == 1 and math.prod(strides) > 1
    if math.prod(outputs) >= math.prod(window) and not pointwise:
        return None
    reaches = [
        _reaches(size, k, q, s, pads[0], d)
        for size, k, q, s, pads, d in zip(
            sizes, window, outputs, strides, padding, dilation, strict=True
        )
    ]
    wide = jnp.promote_types(x.dtype, jnp.float32)
    zero = jnp.zeros((), wide)
    # A split, whose transpose is one concatenation; that of slices is a chain of additions.
    matrices = lax.split(
        kernel.reshape(-1, kernel.shape[-1]), [kernel.shape[-2]] * math.prod(window)
    )
    total = None
    for tap, matrix in zip(itertools.product(*reaches), matrices, strict=True):
        met = [reach for reach in tap if reach is not None]
        if len(met) < len(tap):
            continue
        stops = [
            r.start + s * (r.last - r.first - 1) + 1 for r, s in zip(met, strides, strict=True)
        ]
        read = lax.slice(
            x,
            (0, *(r.start for r in met), 0),
            (x.shape[0], *stops, x.shape[-1]),
            (1, *strides, 1),
        )
        y = lax.dot(read.reshape(-1, x.shape[-1]), matrix, preferred_element_type=wide)
        y = y.reshape(*read.shape[:-1], -1)
        margins = [(r.first, q - r.last, 0) for r, q in zip(met, outputs, strict=True)]
        y = lax.pad(y, zero, [(0, 0, 0), *margins, (0, 0, 0)])
        total = y if total is None else total + y
    return None if total is None else total.astype(x.dtype)
