"""Activations, by name: elementwise ones, softmax, and the gated ones of two inputs.

For any finite input, gradients are finite, and so are values that a float can hold; NaN goes
through. Each smooth function is written as a pair (value, slope): JAX is given the slope in closed
form, computed beside the value, so that the backward pass keeps one array and costs one product.
Inputs of half precision are worked on in float32 and the result has their type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from nn import names

Activation = Callable[..., jax.Array]
Pair = tuple[jax.Array, jax.Array]

# From here on the functions below have saturated in float64; their polynomials would overflow.
_FLAT = 16.0


def _floating(x: ArrayLike) -> jax.Array:
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(jnp.float32)


def _wide(x: jax.Array) -> jax.Array:
    """Half precision to float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _elementwise(name: str, both: Callable[[jax.Array], Pair]) -> Callable[[ArrayLike], jax.Array]:
    """The function of x, from x -> (value, slope)."""

    @jax.custom_jvp
    def typed(x: jax.Array) -> jax.Array:
        return both(_wide(x))[0].astype(x.dtype)

    @typed.defjvp
    def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> Pair:
        (x,), (dx,) = primals, tangents
        y, slope = both(_wide(x))
        return y.astype(x.dtype), slope.astype(x.dtype) * dx

    def activation(x: ArrayLike) -> jax.Array:
        return typed(_floating(x))

    activation.__name__, activation.__doc__ = name, both.__doc__
    return activation


def _gated(
    name: str, both: Callable[[jax.Array], Pair], source: str
) -> Callable[[ArrayLike, ArrayLike], jax.Array]:
    """(gate, up) -> value(gate) * up; the backward pass keeps two arrays."""

    @jax.custom_jvp
    def typed(gate: jax.Array, up: jax.Array) -> jax.Array:
        return (both(_wide(gate))[0] * up).astype(jnp.promote_types(gate.dtype, up.dtype))

    @typed.defjvp
    def _(primals: Pair, tangents: Pair) -> Pair:
        (gate, up), (dgate, dup) = primals, tangents
        dtype = jnp.promote_types(gate.dtype, up.dtype)
        y, slope = both(_wide(gate))
        by_gate, by_up = (slope * up).astype(dtype), y.astype(dtype)
        return (y * up).astype(dtype), by_gate * dgate + by_up * dup

    def activation(gate: ArrayLike, up: ArrayLike) -> jax.Array:
        return typed(_floating(gate), _floating(up))

    activation.__name__, activation.__doc__ = name, f"f(gate) * up ({source}), f: {both.__doc__}"
    return activation


def _sigmoid(x: jax.Array) -> Pair:
    """1 / (1 + exp(-x)) (Rumelhart, Hinton & Williams 1986)."""
    s = lax.logistic(x)
    return s, s * lax.logistic(-x)  # s (1 - s) without the cancellation


def _tanh(x: jax.Array) -> Pair:
    """Hyperbolic tangent (LeCun et al. 1998, "Efficient BackProp")."""
    t = jnp.tanh(x)
    return t, 1 - t * t


def _relu(x: jax.Array) -> Pair:
    """max(x, 0), slope 0 at 0 (Fukushima 1969; Nair & Hinton 2010)."""
    return jnp.maximum(x, 0), (x > 0).astype(x.dtype)


def _relu2(x: jax.Array) -> Pair:
    """max(x, 0)^2 (So et al. 2021, "Primer")."""
    r = jnp.maximum(x, 0)
    return r * r, 2 * r


def _gelu(x: jax.Array) -> Pair:
    """x Phi(x) with the error function (Hendrycks & Gimpel 2016)."""
    z = jnp.clip(x, -_FLAT, _FLAT)
    cdf = 0.5 + 0.5 * lax.erf(z * math.sqrt(0.5))
    return x * cdf, cdf + z * (jnp.exp(-0.5 * z * z) * (1 / math.sqrt(2 * math.pi)))


def _gelu_tanh(x: jax.Array) -> Pair:
    """x Phi(x) by the tanh formula of Hendrycks & Gimpel 2016, section 2 (GPT-2's)."""
    z = jnp.clip(x, -_FLAT, _FLAT)
    root, cube = math.sqrt(2 / math.pi), 0.044715
    t = jnp.tanh(root * z * (1 + cube * z * z))
    gate = 0.5 + 0.5 * t
    return x * gate, gate + (0.5 * root) * z * (1 - t * t) * (1 + 3 * cube * z * z)


def _quick_gelu(x: jax.Array) -> Pair:
    """x sigmoid(1.702 x) (Hendrycks & Gimpel 2016, section 2; CLIP's)."""
    z = 1.702 * jnp.clip(x, -1e4, 1e4)
    s, slope = _sigmoid(z)
    return x * s, s + z * slope


def _silu(x: jax.Array) -> Pair:
    """x sigmoid(x) (Elfwing et al. 2017; swish with beta 1 of Ramachandran et al. 2017)."""
    s, slope = _sigmoid(x)
    return x * s, s + x * slope


def _softplus(x: jax.Array) -> Pair:
    """log(1 + exp(x)) (Dugas et al. 2001)."""
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x))), lax.logistic(x)


sigmoid = _elementwise("sigmoid", _sigmoid)
tanh = _elementwise("tanh", _tanh)
relu = _elementwise("relu", _relu)
relu2 = _elementwise("relu2", _relu2)
gelu = _elementwise("gelu", _gelu)
gelu_tanh = _elementwise("gelu_tanh", _gelu_tanh)
quick_gelu = _elementwise("quick_gelu", _quick_gelu)
silu = _elementwise("silu", _silu)
softplus = _elementwise("softplus", _softplus)

glu = _gated("glu", _sigmoid, "Dauphin et al. 2017")
reglu = _gated("reglu", _relu, "Shazeer 2020")
geglu = _gated("geglu", _gelu, "Shazeer 2020")
geglu_tanh = _gated("geglu_tanh", _gelu_tanh, "Shazeer 2020; Gemma's")
swiglu = _gated("swiglu", _silu, "Shazeer 2020; Llama's")


def leaky_relu(x: ArrayLike, slope: float = 0.01) -> jax.Array:
    """x above 0, slope x from 0 down (Maas, Hannun & Ng 2013)."""

    def both(x: jax.Array) -> Pair:
        slopes = jnp.where(x > 0, 1.0, slope).astype(x.dtype)
        return slopes * x, slopes

    return _elementwise("leaky_relu", both)(x)


def elu(x: ArrayLike, alpha: float = 1.0) -> jax.Array:
    """x above 0, alpha (exp(x) - 1) from 0 down (Clevert, Unterthiner & Hochreiter 2015)."""

    def both(x: jax.Array) -> Pair:
        below = alpha * jnp.expm1(jnp.minimum(x, 0))
        return jnp.where(x > 0, x, below), jnp.where(x > 0, 1.0, below + alpha).astype(x.dtype)

    return _elementwise("elu", both)(x)


def prelu(x: jax.Array, slope: jax.Array) -> jax.Array:
    """`leaky_relu` with a learned slope (He et al. 2015, eq. 1; they start it at 0.25).

    slope: a scalar, or any shape that lines up with the last dimensions of x, such as (channels,).
    """
    wide = slope.reshape((1,) * (x.ndim - slope.ndim) + slope.shape)
    return jnp.where(x > 0, x, wide.astype(x.dtype) * x)


def softmax(x: jax.Array, axis: int = -1) -> jax.Array:
    """exp(x_i) / sum_j exp(x_j) along `axis` (Bridle 1990).

    Not elementwise: `axis` must not be split over the mesh.
    """
    return jax.nn.softmax(_wide(x), axis=axis).astype(x.dtype)


ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {
        "sigmoid": sigmoid,
        "tanh": tanh,
        "relu": relu,
        "relu2": relu2,
        "leaky_relu": leaky_relu,
        "prelu": prelu,
        "elu": elu,
        "gelu": gelu,
        "gelu_tanh": gelu_tanh,
        "quick_gelu": quick_gelu,
        "silu": silu,
        "swish": silu,
        "softplus": softplus,
        "softmax": softmax,
    }
)
GATED: Mapping[str, Activation] = MappingProxyType(
    {"glu": glu, "geglu": geglu, "geglu_tanh": geglu_tanh, "swiglu": swiglu, "reglu": reglu}
)


def get(name: str) -> Activation:
    """The activation of that name.

    It takes x; a gated one (see `is_gated`) takes (gate, up), and prelu (x, slope).

    Raises:
      ValueError: no activation has this name.
    """
    return names.lookup("activation", name, {**ACTIVATIONS, **GATED})


def is_gated(name: str) -> bool:
    """Whether the activation takes (gate, up); raises ValueError on an unknown name."""
    get(name)
    return name in GATED
