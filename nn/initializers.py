"""Initial values of weights, each a function `(key, shape, dtype=float32) -> array`.

The three classic scalings differ in which fan (number of inputs or outputs of a unit) the variance
is divided by. Fans follow from the axes of the kernel that are summed over (`in_axes`) and produced
(`out_axes`); what is neither, such as the window of a convolution, counts in both, unless it only
stacks independent kernels (`stack_axes`, such as experts).

What draws its values has an attribute `stddev`, a function of the shape.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from nn import names

Axes = int | Sequence[int]
_CUT = 2.0  # standard deviations at which the truncated normal is cut
_CUT_STD = 0.87962566103423978  # what is left of a standard deviation of 1


class Initializer(Protocol):
    def __call__(
        self, key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32
    ) -> jax.Array: ...


def zeros(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    return jnp.zeros(shape, dtype)


def ones(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    return jnp.ones(shape, dtype)


def constant(value: float) -> Initializer:
    """Every element is `value`."""

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        return jnp.full(shape, value, dtype)

    return init


def _normal(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
    return jax.random.normal(key, shape, dtype)


def _truncated(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
    return jax.random.truncated_normal(key, -_CUT, _CUT, shape, dtype) / _CUT_STD


def _uniform(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
    return jax.random.uniform(key, shape, dtype, -math.sqrt(3), math.sqrt(3))


# Of mean 0 and variance 1.
DISTRIBUTIONS: Mapping[str, Callable[..., jax.Array]] = MappingProxyType(
    {"normal": _normal, "truncated": _truncated, "uniform": _uniform}
)


@dataclasses.dataclass(frozen=True)
class Random:
    """Values of mean 0 with a standard deviation that follows from the shape.

    draw: (key, shape, dtype, stddev) -> array.
    """

    draw: Callable[..., jax.Array]
    stddev: Callable[[Sequence[int]], float]

    def __call__(self, key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        return self.draw(key, shape, dtype, self.stddev(shape))


def _scaled(distribution: str, stddev: Callable[[Sequence[int]], float]) -> Initializer:
    """A distribution of mean 0 whose standard deviation follows from the shape."""
    unit = names.lookup("distribution", distribution, DISTRIBUTIONS)

    def draw(key: jax.Array, shape: Sequence[int], dtype: Any, stddev: float) -> jax.Array:
        return unit(key, shape, dtype) * jnp.asarray(stddev, dtype)

    return Random(draw, stddev)


def normal(stddev: float = 1.0) -> Initializer:
    """Normal of mean 0."""
    return _scaled("normal", lambda shape: stddev)


def truncated_normal(stddev: float = 1.0) -> Initializer:
    """Normal cut at two of its standard deviations; `stddev` is that of what is left."""
    return _scaled("truncated", lambda shape: stddev)


def uniform(scale: float = 1.0) -> Initializer:
    """Uniform between -scale and scale."""
    return _scaled("uniform", lambda shape: scale / math.sqrt(3))


def _positive(axes: Axes, ndim: int) -> tuple[int, ...]:
    axes = (axes,) if isinstance(axes, int) else tuple(axes)
    wrong = [axis for axis in axes if not -ndim <= axis < ndim]
    if wrong:
        raise ValueError(f"axis {wrong[0]} of a kernel with {ndim} dimensions")
    return tuple(axis % ndim for axis in axes)


def _split_axes(
    shape: Sequence[int], in_axes: Axes | None, out_axes: Axes | None, stack_axes: Axes
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The three kinds of axes as non-negative numbers.

    Raises:
      ValueError: not given for a kernel that is no matrix, out of range, or one axis used twice.
    """
    ndim = len(shape)
    if in_axes is None or out_axes is None:
        if ndim != 2:
            raise ValueError(
                f"initializer of a kernel of shape {tuple(shape)}: only a matrix has obvious fans; "
                f"pass in_axes and out_axes (a convolution's are -2 and -1)"
            )
        in_axes, out_axes = 0, 1
    ins, outs, stack = (_positive(axes, ndim) for axes in (in_axes, out_axes, stack_axes))
    used = [*ins, *outs, *stack]
    if len(set(used)) != len(used):
        raise ValueError(f"in_axes={ins}, out_axes={outs}, stack_axes={stack}: one axis is in two")
    return ins, outs, stack


def fans(
    shape: Sequence[int],
    in_axes: Axes | None = None,
    out_axes: Axes | None = None,
    stack_axes: Axes = (),
) -> tuple[int, int]:
    """(fan_in, fan_out): inputs that each output sums, and outputs that each input feeds.

    A matrix is (in, out); a kernel of more dimensions needs its axes named, for example
    in_axes=0, out_axes=(1, 2) for (dim, heads, head_dim).
    """
    ins, outs, stack = _split_axes(shape, in_axes, out_axes, stack_axes)
    rest = [i for i in range(len(shape)) if i not in (*ins, *outs, *stack)]
    window = math.prod(shape[i] for i in rest)
    return math.prod(shape[i] for i in ins) * window, math.prod(shape[i] for i in outs) * window


def variance_scaling(
    scale: float,
    fan: str,
    distribution: str,
    in_axes: Axes | None = None,
    out_axes: Axes | None = None,
    stack_axes: Axes = (),
) -> Initializer:
    """Mean 0, variance scale / fan.

    fan: "in", "out" or "mean" of the two; distribution: "normal", "truncated" (see
    `truncated_normal`) or "uniform"; axes: see `fans`.
    """
    names.lookup("fan", fan, dict.fromkeys(("in", "out", "mean")))

    def stddev(shape: Sequence[int]) -> float:
        fan_in, fan_out = fans(shape, in_axes, out_axes, stack_axes)
        size = {"in": fan_in, "out": fan_out, "mean": (fan_in + fan_out) / 2}[fan]
        return math.sqrt(scale / max(size, 1))

    return _scaled(distribution, stddev)


def _family(scale: float, fan: str, distribution: str, source: str) -> Callable[..., Initializer]:
    def make(
        in_axes: Axes | None = None, out_axes: Axes | None = None, stack_axes: Axes = ()
    ) -> Initializer:
        return variance_scaling(scale, fan, distribution, in_axes, out_axes, stack_axes)

    make.__doc__ = f"Variance {scale} / fan_{fan}, {distribution} ({source}); axes: see `fans`."
    return make


_HE, _GLOROT, _LECUN = (2.0, "in"), (1.0, "mean"), (1.0, "in")
he_normal = _family(*_HE, "normal", "He et al. 2015")
he_uniform = _family(*_HE, "uniform", "He et al. 2015")
he_truncated = _family(*_HE, "truncated", "He et al. 2015")
glorot_normal = _family(*_GLOROT, "normal", "Glorot & Bengio 2010")
glorot_uniform = _family(*_GLOROT, "uniform", "Glorot & Bengio 2010, eq. 16")
glorot_truncated = _family(*_GLOROT, "truncated", "Glorot & Bengio 2010")
lecun_normal = _family(*_LECUN, "normal", "LeCun et al. 1998")
lecun_uniform = _family(*_LECUN, "uniform", "LeCun et al. 1998")
lecun_truncated = _family(*_LECUN, "truncated", "LeCun et al. 1998")


def orthogonal(
    scale: float = 1.0,
    in_axes: Axes | None = None,
    out_axes: Axes | None = None,
    stack_axes: Axes = (),
) -> Initializer:
    """A random matrix with orthogonal rows or columns, whichever are fewer (Saxe et al. 2013).

    The window of a convolution counts among its inputs. Axes: see `fans`.
    """

    def sizes(shape: Sequence[int]) -> tuple[int, int, int]:
        """(matrices, rows, columns)."""
        _, outs, stack = _split_axes(shape, in_axes, out_axes, stack_axes)
        columns, stacked = (math.prod(shape[i] for i in axes) for axes in (outs, stack))
        return stacked, math.prod(shape) // max(columns * stacked, 1), columns

    def stddev(shape: Sequence[int]) -> float:
        return scale / math.sqrt(max(1, *sizes(shape)[1:]))

    def draw(key: jax.Array, shape: Sequence[int], dtype: Any, _: float) -> jax.Array:
        ins, outs, stack = _split_axes(shape, in_axes, out_axes, stack_axes)
        window = tuple(i for i in range(len(shape)) if i not in (*ins, *outs, *stack))
        order = (*stack, *window, *ins, *outs)
        stacked, rows, columns = sizes(shape)
        tall = (stacked, max(rows, columns), min(rows, columns))
        # Float32 at least: there is no decomposition of half precision.
        work = jnp.promote_types(dtype, jnp.float32)
        q, r = jnp.linalg.qr(jax.random.normal(key, tall, work))
        # Signs that make the distribution uniform (Mezzadri 2007).
        q = q * jnp.sign(jnp.diagonal(r, axis1=1, axis2=2))[:, None, :]
        matrix = q if rows >= columns else q.swapaxes(1, 2)
        back = sorted(range(len(order)), key=lambda i: order[i])
        turned = matrix.reshape(tuple(shape[i] for i in order)).transpose(back)
        return (scale * turned).astype(dtype)

    return Random(draw, stddev)


INITIALIZERS: Mapping[str, Callable[..., Initializer]] = MappingProxyType(
    {
        "he_normal": he_normal,
        "he_uniform": he_uniform,
        "he_truncated": he_truncated,
        "glorot_normal": glorot_normal,
        "glorot_uniform": glorot_uniform,
        "glorot_truncated": glorot_truncated,
        "lecun_normal": lecun_normal,
        "lecun_uniform": lecun_uniform,
        "lecun_truncated": lecun_truncated,
        "normal": normal,
        "truncated_normal": truncated_normal,
        "uniform": uniform,
        "orthogonal": orthogonal,
        "constant": constant,
        "zeros": lambda: zeros,
        "ones": lambda: ones,
    }
)


def get(name: str, **options: Any) -> Initializer:
    """The initializer of that name, made with `options`.

    Raises:
      ValueError: no initializer has this name.
    """
    return names.lookup("initializer", name, INITIALIZERS)(**options)
