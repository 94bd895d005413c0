"""Convolution, its transpose, and pooling over one to three spatial dimensions, channels last.

LeCun et al. 1989. Activations are (B, S..., C): batch, spatial sizes, channels. Kernels are
(K..., I / groups, O) and are not flipped (cross-correlation), as everywhere in deep learning.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nn import initializers, names
from nn.parallel import Layer, Weight, axis_size, conv
from nn.parallel.collectives import pmean
from nn.parallel.halo import window_input
from nn.parallel.mesh import SEQUENCE_AXES
from nn.parallel.weight import Initializer

Padding = str | int | Sequence[int | tuple[int, int]]
MODES = dict.fromkeys(("SAME", "VALID"))


def per_dim(value: int | Sequence[int], rank: int, what: str) -> tuple[int, ...]:
    """One entry per spatial dimension; raises ValueError on another number of them."""
    entries = (value,) * rank if isinstance(value, int) else tuple(value)
    if len(entries) != rank:
        raise ValueError(f"{what}={value} for {rank} spatial dimensions: give 1 number or {rank}")
    return entries


def pad_amounts(
    padding: Padding,
    sizes: Sequence[int],
    window: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
) -> tuple[tuple[int, int], ...]:
    """(before, after) of each spatial dimension.

    padding: "VALID": none; "SAME": output size = ceil(S / stride), the odd element after (as in
      TensorFlow, so asymmetric for an even size and stride 2); an int, or an int or a pair per
      dimension: that many on both sides (as in PyTorch).
    """
    if isinstance(padding, str):
        names.lookup("padding", padding, MODES)
        extents = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
        pairs = lax.padtype_to_pads(sizes, extents, strides, padding)
        return tuple((int(before), int(after)) for before, after in pairs)
    if isinstance(padding, int):
        return ((padding, padding),) * len(window)
    if len(padding) != len(window):
        raise ValueError(f"padding={padding} for {len(window)} spatial dimensions: give one each")
    return tuple((p, p) if isinstance(p, int) else (p[0], p[1]) for p in padding)


def whole_sizes(x: jax.Array, split: bool) -> tuple[int, ...]:
    """Spatial sizes of x (B, S..., C) over all shards; split: `context` splits the first."""
    first = x.shape[1] * (axis_size("context") if split else 1)
    return (first, *x.shape[2:-1])


class Conv(Layer):
    """Convolution with a bias.

    features: channels out. kernel: spatial sizes, which set the rank (1 to 3).
    strides, dilation: one number or one per dimension. padding: see `pad_amounts`.
    groups: channels in and out are in so many groups that do not mix; as many as channels in for
      a depthwise convolution.
    names: logical names of the kernel's channels in and out; ("conv_in", "channels") splits the
      output over tensor (column), ("channels", "conv_in") the input (row). With groups the input
      is split as the output is, and the name of the channels in is None.
    in_features: needed where x holds only a share of the channels; x.shape[-1] otherwise.
    split: where there is `context`, it splits the first spatial dimension of x.
    """

    features: int
    kernel: tuple[int, ...]
    strides: int | tuple[int, ...] = 1
    padding: Padding = "SAME"
    dilation: int | tuple[int, ...] = 1
    groups: int = 1
    names: tuple[str | None, str | None] = ("conv_in", "channels")
    bias: bool = True
    in_features: int | None = None
    split: bool = False
    kernel_init: Initializer = initializers.he_normal(in_axes=-2, out_axes=-1)
    bias_init: Initializer = initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, S..., I) -> (B, S'..., O), either possibly this shard's channels."""
        rank = self._check(x)
        strides = per_dim(self.strides, rank, "strides")
        dilation = per_dim(self.dilation, rank, "dilation")
        sizes = whole_sizes(x, self.split)
        pads = pad_amounts(self.padding, sizes, self.kernel, strides, dilation)
        y = conv(x, self._kernel(x), strides, pads, dilation, self.groups, over_context=self.split)
        return self._add_bias(y)

    def _check(self, x: jax.Array) -> int:
        rank = len(self.kernel)
        if not 1 <= rank <= 3 or x.ndim != rank + 2:
            raise ValueError(
                f"{self.name}: kernel {self.kernel} needs an input (batch, {rank} spatial sizes, "
                f"channels) of 1 to 3 spatial sizes, got shape {x.shape}"
            )
        width = self.in_features or x.shape[-1]
        if width % self.groups or self.features % self.groups:
            good = math.gcd(math.gcd(width, self.features), self.groups)
            raise ValueError(
                f"{self.name}: groups={self.groups} does not divide channels {width} -> "
                f"{self.features}; nearest that does: {good}"
            )
        return rank

    def _kernel(self, x: jax.Array) -> Weight:
        width = (self.in_features or x.shape[-1]) // self.groups
        shape = (*self.kernel, width, self.features)
        return self.weight(
            "kernel", shape, ((None,) * len(self.kernel)) + self.names, self.kernel_init
        )

    def _add_bias(self, y: jax.Array) -> jax.Array:
        if not self.bias:
            return y
        # A bias along the width between blocks is too small to be worth gathering.
        name = None if self.names[1] == "conv_in" else self.names[1]
        return y + self.weight("bias", (self.features,), (name,), self.bias_init).beside(y)


class ConvTranspose(Conv):
    """The transpose of a convolution, upsampling by its strides (Dumoulin & Visin 2016, section 4).

    PyTorch's convention: S' = s (S - 1) + d (K - 1) + 1 - before - after + output_padding, and the
    kernel is the one of the convolution whose gradient this is. "VALID": padding 0; "SAME":
    S' = s S. Kernel (K..., I / groups, O).
    """

    output_padding: int | tuple[int, ...] = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, S..., I) -> (B, S'..., O)."""
        if self.split and axis_size("context") > 1:
            raise ValueError(f"{self.name}: mesh.context cannot split a transposed convolution")
        rank = self._check(x)
        strides = per_dim(self.strides, rank, "strides")
        dilation = per_dim(self.dilation, rank, "dilation")
        extra = per_dim(self.output_padding, rank, "output_padding")
        reach = [(k - 1) * d for k, d in zip(self.kernel, dilation, strict=True)]
        cut = pad_amounts(self.padding, x.shape[1:-1], self.kernel, strides, dilation)
        if self.padding == "SAME":
            total = [r + 1 - s for r, s in zip(reach, strides, strict=True)]
            cut = tuple((max(t, 0) // 2, t - max(t, 0) // 2) for t in total)
        pads = [(r - a, r - b + e) for r, (a, b), e in zip(reach, cut, extra, strict=True)]
        kernel = self._kernel(x)
        flipped = jnp.flip(kernel.value, range(rank))
        y = conv(
            x,
            dataclasses.replace(kernel, value=flipped),
            (1,) * rank,
            pads,
            dilation,
            self.groups,
            input_dilation=strides,
        )
        return self._add_bias(y)


def max_pool(
    x: jax.Array,
    window: int | Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: Padding = "VALID",
    split: bool = False,
) -> jax.Array:
    """Largest element of each window; strides are the window by default. Padding never wins.

    split: where there is `context`, it splits the first spatial dimension of x.
    """
    sizes, steps, pads = _window(x, window, strides, padding, split)
    if split and axis_size("context") > 1:
        x = window_input(x, 1, sizes[1], steps[1], pads[1], fill=-math.inf)
        pads = (pads[0], (0, 0), *pads[2:])
    y = jnp.pad(x, pads, constant_values=-jnp.inf)
    # One dimension after the other, the last first: gradients of equal elements go to the first in
    # reading order, as with `reduce_window`, whose gradient is several times slower on CPUs.
    for dim in reversed(range(1, x.ndim - 1)):
        last = y.shape[dim] - sizes[dim]
        parts = [
            lax.slice_in_dim(y, i, last + i + 1, steps[dim], axis=dim) for i in range(sizes[dim])
        ]
        y = functools.reduce(_first_largest, parts)
    return y


def _first_largest(a: jax.Array, b: jax.Array) -> jax.Array:
    """Elementwise maximum that keeps a on a tie, in the gradient too; NaN wins."""
    return jnp.where((b > a) | (b != b), b, a)


def avg_pool(
    x: jax.Array,
    window: int | Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: Padding = "VALID",
    count_include_pad: bool = True,
    split: bool = False,
) -> jax.Array:
    """Mean of each window, in float32; strides are the window by default.

    count_include_pad: divide by the size of the window (PyTorch), else by the number of its
      elements that are not padding (TensorFlow).
    split: where there is `context`, it splits the first spatial dimension of x.
    """
    sizes, steps, pads = _window(x, window, strides, padding, split)
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def total(part: jax.Array) -> jax.Array:
        own = pads
        if split and axis_size("context") > 1:
            part = window_input(part, 1, sizes[1], steps[1], pads[1])
            own = (pads[0], (0, 0), *pads[2:])
        return lax.reduce_window(part, np.zeros((), wide), lax.add, sizes, steps, own)

    count: jax.Array | int = math.prod(sizes)
    if not count_include_pad:
        count = total(jnp.ones((1, *x.shape[1:-1], 1), wide))
    return (total(x.astype(wide)) / count).astype(x.dtype)


def global_avg_pool(x: jax.Array) -> jax.Array:
    """Mean over all positions in float32 (Lin et al. 2014), (B, S..., C) -> (B, C).

    Where x varies over `context`, its positions are split over it.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    mean = jnp.mean(x, axis=tuple(range(1, x.ndim - 1)), dtype=wide)
    return pmean(mean, SEQUENCE_AXES).astype(x.dtype)


def _window(
    x: jax.Array,
    window: int | Sequence[int],
    strides: int | Sequence[int] | None,
    padding: Padding,
    split: bool,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[tuple[int, int], ...]]:
    """Window, strides and padding of every dimension of x (B, S..., C)."""
    rank = x.ndim - 2
    sizes = per_dim(window, rank, "window")
    steps = sizes if strides is None else per_dim(strides, rank, "strides")
    pads = pad_amounts(padding, whole_sizes(x, split), sizes, steps, (1,) * rank)
    return (1, *sizes, 1), (1, *steps, 1), ((0, 0), *pads, (0, 0))
