"""Activations: values, slopes, extremes, types. Parity with PyTorch is in tests/test_golden.py."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from nn import activations

ELEMENTWISE = sorted(activations.ACTIVATIONS.keys() - {"softmax", "prelu"})
DTYPES = ("float16", "bfloat16", "float32", "float64")

# f in NumPy, written down from the definitions.
REFERENCES: dict[str, Any] = {
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "elu": lambda x: np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1),
    "gelu": lambda x: x * scipy.special.ndtr(x),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "swish": lambda x: x / (1 + np.exp(-x)),
    "softplus": lambda x: np.log1p(np.exp(x)),
}
INNER = {"glu": "sigmoid", "reglu": "relu", "geglu": "gelu", "geglu_tanh": "gelu_tanh"} | {
    "swiglu": "silu"
}


def points(count: int = 41) -> np.ndarray:
    return np.linspace(-6.0, 6.0, count) + 0.0123


def test_every_activation_is_checked() -> None:
    assert REFERENCES.keys() == set(ELEMENTWISE)
    assert INNER.keys() == activations.GATED.keys()


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_value_and_slope(name: str) -> None:
    with jax.enable_x64(True):
        x, step = points(), 1e-5
        f = REFERENCES[name]
        np.testing.assert_allclose(activations.get(name)(x), f(x), rtol=1e-12, atol=1e-14)
        slope = jax.jit(jax.vmap(jax.grad(activations.get(name))))(x)
        np.testing.assert_allclose(slope, (f(x + step) - f(x - step)) / (2 * step), atol=1e-8)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_second_derivative_and_forward_mode(name: str) -> None:
    with jax.enable_x64(True):
        f, x = activations.get(name), jnp.asarray(points())
        slope = jax.jit(jax.vmap(jax.grad(f)))
        forward = jax.jit(lambda x: jax.jvp(f, (x,), (jnp.ones_like(x),))[1])
        np.testing.assert_allclose(forward(x), slope(x), rtol=1e-12)
        second = jax.jit(jax.vmap(jax.grad(jax.grad(f))))(x)
        np.testing.assert_allclose(second, (slope(x + 1e-5) - slope(x - 1e-5)) / 2e-5, atol=1e-8)


@pytest.mark.parametrize("name", activations.GATED)
def test_gated(name: str) -> None:
    gate, up = jax.random.normal(jax.random.key(0), (2, 7, 5))
    inner = activations.get(INNER[name])

    def plain(gate: jax.Array, up: jax.Array) -> jax.Array:
        return inner(gate) * up

    def run(f: Any) -> Any:
        y, pull = jax.vjp(f, gate, up)
        return y, *pull(up)

    both = jax.jit(lambda: (run(activations.get(name)), run(plain)))()
    for ours, expected in zip(*both, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*ELEMENTWISE, "softmax", *activations.GATED])
def test_extremes_are_finite(name: str, dtype: str) -> None:
    """The largest float of each type and down from there, in value and slope."""
    with jax.enable_x64(dtype == "float64"):
        top = float(jnp.finfo(dtype).max)
        sizes = [0.0, 1e-7, 20.0, 90.0, 750.0, top**0.25, top**0.49, top**0.5, top / 4, top]
        if name == "relu2":  # more than that a float cannot hold
            sizes = [s for s in sizes if s * s <= top]
        x = jnp.asarray([s * sign for s in sizes for sign in (1, -1)], dtype)
        other = (jnp.ones_like(x),) if activations.is_gated(name) else ()

        @jax.jit
        def run(*args: jax.Array) -> Any:
            y, pull = jax.vjp(activations.get(name), *args)
            return y, *pull(jnp.ones_like(y))

        for result in run(x, *other):
            assert result.dtype == x.dtype
            assert np.isfinite(np.asarray(result, np.float64)).all(), (x, result)


@pytest.mark.parametrize("name", [*ELEMENTWISE, *activations.GATED])
def test_nan_goes_through(name: str) -> None:
    x = jnp.asarray([jnp.nan, 1.0])
    y = activations.get(name)(*((x, x) if activations.is_gated(name) else (x,)))
    assert jnp.isnan(y).tolist() == [True, False]


@pytest.mark.parametrize("name", [*ELEMENTWISE, "softmax"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_rounded_once(name: str, dtype: str) -> None:
    x = jnp.asarray(points(), dtype)
    expected = activations.get(name)(x.astype(jnp.float32)).astype(dtype)
    np.testing.assert_array_equal(activations.get(name)(x), expected)


def test_slopes_at_zero() -> None:
    slopes = {
        "relu": 0.0,
        "leaky_relu": 0.01,
        "elu": 1.0,
        "gelu": 0.5,
        "softplus": 0.5,
        "relu2": 0.0,
    }
    for name, slope in slopes.items():
        assert jax.grad(activations.get(name))(0.0) == pytest.approx(slope), name


def test_prelu_learns_a_slope_per_channel() -> None:
    x = jnp.asarray([[-2.0, 3.0], [4.0, -5.0]])
    slope = jnp.asarray([0.25, 0.5])
    np.testing.assert_allclose(activations.prelu(x, slope), [[-0.5, 3.0], [4.0, -2.5]])
    grad = jax.grad(lambda s: activations.prelu(x, s).sum())(slope)
    np.testing.assert_allclose(grad, [-2.0, -5.0])
    np.testing.assert_allclose(activations.prelu(x, jnp.asarray(0.1)), [[-0.2, 3.0], [4.0, -0.5]])


def test_softmax() -> None:
    x = jnp.asarray([[1e30, 0.0, -1e30], [3e38, 3e38, -3e38], [0.0, jnp.log(3.0), -jnp.inf]])
    expected = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.25, 0.75, 0.0]]
    np.testing.assert_allclose(activations.softmax(x), expected, rtol=1e-6)
    np.testing.assert_allclose(activations.softmax(x.T, axis=0), np.transpose(expected), rtol=1e-6)


@pytest.mark.parametrize("name", [*ELEMENTWISE, *activations.GATED])
def test_what_the_backward_pass_keeps(name: str) -> None:
    """One array of the size of each input at most, in the type of the input."""
    x = jnp.ones((64, 32), jnp.bfloat16)
    args = (x, x) if activations.is_gated(name) else (x,)
    kept = jax.tree.leaves(jax.vjp(activations.get(name), *args)[1])
    sizes = sum(leaf.nbytes for leaf in kept if leaf.size > 1)
    assert sizes <= len(args) * x.nbytes


def test_numbers_that_are_no_floats() -> None:
    assert activations.sigmoid(0) == 0.5
    assert activations.relu(np.arange(-1, 2)).tolist() == [0.0, 0.0, 1.0]


def test_mixed_types_of_a_gate() -> None:
    gate, up = jnp.ones(3, jnp.float32), jnp.ones(3, jnp.bfloat16)
    y, pull = jax.vjp(activations.swiglu, gate, up)
    assert y.dtype == jnp.float32
    assert [g.dtype for g in pull(y)] == [jnp.float32, jnp.bfloat16]


def test_each_names_its_source() -> None:
    for name, f in {**activations.ACTIVATIONS, **activations.GATED}.items():
        assert any(c.isdigit() for c in inspect.getdoc(f) or ""), name


def test_lookup() -> None:
    assert activations.get("swish") is activations.silu
    assert activations.is_gated("swiglu")
    assert not activations.is_gated("gelu")
    for call in (activations.get, activations.is_gated):
        with pytest.raises(ValueError, match="unknown activation 'gleu': .*nearest: 'glu'"):
            call("gleu")
