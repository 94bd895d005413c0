"""Layer, root-mean-square, group and batch normalisation; statistics in float32.

Each is told by `split` which logical name its feature dimension has where features are split
over the mesh; the moments are then summed over the shards.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from nn import initializers, names
from nn.parallel import BATCH_AXES, Layer, axis_size, split_axis
from nn.parallel.collectives import pmean, shards
from nn.parallel.mesh import SEQUENCE_AXES

_MOMENT_AXES = (*BATCH_AXES, *SEQUENCE_AXES)  # examples, and positions where they are split


def _scale_and_bias(
    layer: Layer, y: jax.Array, features: int, split: str | None, scale: bool, bias: bool
) -> jax.Array:
    """y * scale + bias along the last dimension, both float32 parameters of (features,)."""
    if scale:
        y = y * layer.weight("scale", (features,), (split,), initializers.ones).beside(y)
    if bias:
        y = y + layer.weight("bias", (features,), (split,), initializers.zeros).beside(y)
    return y


def _mean(x: jax.Array, dims: Sequence[int], axes: Sequence[str]) -> jax.Array:
    """Mean over local dims and over the mesh axes that split them; dims are kept."""
    return pmean(jnp.mean(x, axis=tuple(dims), keepdims=True), axes)


class LayerNorm(Layer):
    """(x - mean) / sqrt(var + eps) * scale + bias over the last dimension (Ba et al. 2016)."""

    eps: float = 1e-5
    scale: bool = True
    bias: bool = True
    split: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        axes = _axes(self.split)
        h = x.astype(jnp.float32)
        h = h - _mean(h, [-1], axes)
        h = h * jax.lax.rsqrt(_mean(h * h, [-1], axes) + self.eps)
        features = x.shape[-1] * axis_size(axes)
        return _scale_and_bias(self, h, features, self.split, self.scale, self.bias).astype(x.dtype)


class RMSNorm(Layer):
    """x / sqrt(mean(x^2) + eps) * scale over the last dimension (Zhang & Sennrich 2019).

    offset: what is added to the scale: with 1 the scale begins, and decays, at 0 (Gemma, 2024).
    """

    eps: float = 1e-6
    split: str | None = None
    offset: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        axes = _axes(self.split)
        h = x.astype(jnp.float32)
        h = h * jax.lax.rsqrt(_mean(h * h, [-1], axes) + self.eps)
        features = x.shape[-1] * axis_size(axes)
        scale = self.weight("scale", (features,), (self.split,), _first_scale(self.offset))
        return (h * (scale.beside(h) + self.offset)).astype(x.dtype)


class HeadNorm(Layer):
    """RMS norm of each head of x (B, T, H, K), or with `row` of all heads of a position together.

    heads: H of all shards. split: the logical name of H. offset: see `RMSNorm`.
    """

    heads: int
    eps: float = 1e-6
    offset: float = 0.0
    row: bool = False
    split: str = "heads"

    @nn.compact
    def __call__(self, x_BTHK: jax.Array) -> jax.Array:
        width = x_BTHK.shape[-1]
        shape: tuple[int, ...] = (self.heads, width)
        names: tuple[str, ...] = (self.split, "head_dim")
        if not self.row:
            shape, names = shape[1:], names[1:]
        axis = split_axis(self.split, self.heads)
        dims, axes = ([-1], ()) if not self.row else ([-2, -1], () if axis is None else (axis,))
        h = x_BTHK.astype(jnp.float32)
        h = h * jax.lax.rsqrt(_mean(h * h, dims, axes) + self.eps)
        scale = self.weight("scale", shape, names, _first_scale(self.offset))
        return (h * (scale.beside(h) + self.offset)).astype(x_BTHK.dtype)


def _first_scale(offset: float) -> initializers.Initializer:
    """So that the whole factor is 1."""
    return initializers.constant(1.0 - offset)


class GroupNorm(Layer):
    """Layer norm over groups of channels and all positions (Wu & He 2018); x (B, ..., C)."""

    groups: int = 32
    eps: float = 1e-5
    split: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shards = axis_size(_axes(self.split))
        channels = x.shape[-1] * shards
        if channels % self.groups or self.groups % shards:
            raise ValueError(
                f"GroupNorm: {channels} channels in {self.groups} groups over {shards} shards: "
                f"groups must divide the channels and be a multiple of the shards"
            )
        groups = self.groups // shards
        h = x.astype(jnp.float32).reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
        h = h - _over_positions(h)
        h = h * jax.lax.rsqrt(_over_positions(h * h) + self.eps)
        h = h.reshape(x.shape)
        return _scale_and_bias(self, h, channels, self.split, True, True).astype(x.dtype)


class BatchNorm(Layer):
    """Normalisation by the moments of the *global* batch (Ioffe & Szegedy 2015); x (B, ..., C).

    momentum: running = momentum * running + (1 - momentum) * batch.
    unbiased: the running variance is the unbiased one, as in PyTorch.
    """

    train: bool = False
    eps: float = 1e-5
    momentum: float = 0.9
    unbiased: bool = True
    split: str | None = None
    scale_init: initializers.Initializer = initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features = x.shape[-1] * axis_size(_axes(self.split))
        shape, split = (features,), (self.split,)
        scale = self.weight("scale", shape, split, self.scale_init).value
        bias = self.weight("bias", shape, split, initializers.zeros).value
        running_mean = self.statistic("mean", shape, split, 0.0, "batch_stats")
        running_var = self.statistic("var", shape, split, 1.0, "batch_stats")
        if not self.train:
            mean, var = running_mean.value, running_var.value
        else:
            mean, var = self._moments(x, running_mean.value)
            if not self.is_initializing():
                count = x.size // x.shape[-1] * shards(x, _MOMENT_AXES)
                seen = var * (count / max(count - 1, 1)) if self.unbiased else var
                keep = self.momentum
                running_mean.value = keep * running_mean.value + (1 - keep) * mean
                running_var.value = keep * running_var.value + (1 - keep) * seen
        # One multiply and one add per element: the factors are per channel.
        factor = scale * jax.lax.rsqrt(var + self.eps)
        offset = bias - mean * factor
        wide = (1,) * (x.ndim - 1) + (-1,)
        y = _wide(x) * factor.reshape(wide) + offset.reshape(wide)
        return y.astype(x.dtype)

    def _moments(self, x: jax.Array, shift: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and variance per channel in one pass over x and one sum over the mesh.

        var = E[(x - s)^2] - E[x - s]^2, whose rounding error is small where the shift s, here the
        running mean, is near the mean (Chan, Golub & LeVeque 1983).
        """
        dims = tuple(range(x.ndim - 1))
        h = _wide(x) - shift.reshape((1,) * len(dims) + (-1,))
        moments = jnp.stack([jnp.mean(h, axis=dims), jnp.mean(jnp.square(h), axis=dims)])
        first, second = pmean(moments, _MOMENT_AXES)
        return first + shift, jnp.maximum(second - jnp.square(first), 0.0)


def _wide(x: jax.Array) -> jax.Array:
    """Half precision to float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _over_positions(h: jax.Array) -> jax.Array:
    """Mean over positions, of all shards where they are split, and the channels of a group."""
    return pmean(jnp.mean(h, axis=(1, 3), keepdims=True), SEQUENCE_AXES)


def _axes(split: str | None) -> tuple[str, ...]:
    axis = split_axis(split)
    return () if axis is None else (axis,)


NORMS: dict[str, Callable[..., Layer]] = {
    "layer": LayerNorm,
    "rms": RMSNorm,
    "rms_one": functools.partial(RMSNorm, offset=1.0),
}


def make(kind: str, eps: float, bias: bool, name: str) -> Layer:
    """The norm of the residual stream by name; "rms_one" is the RMS norm whose scale is 1 + s."""
    cls = names.lookup("norm", kind, NORMS)
    return cls(eps=eps, bias=bias, name=name) if cls is LayerNorm else cls(eps=eps, name=name)
