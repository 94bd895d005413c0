"""Linear recurrences over shards of `context` equal a loop over positions, gradients too."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from nn import parallel
from nn.parallel.recurrence import linear_recurrence

B, T = 3, 24
ORDERED = parallel.Rules(attention="ulysses")
SHAPES = {
    "elementwise": ((B, T, 5), (B, T, 5)),
    "matrix states": ((B, T, 2, 1, 1), (B, T, 2, 3, 4)),
}


def loop(a: jax.Array, b: jax.Array, h: jax.Array, reverse: bool) -> jax.Array:
    states = []
    for t in reversed(range(T)) if reverse else range(T):
        h = a[:, t] * h + b[:, t]
        states.append(h)
    return jnp.stack(states[::-1] if reverse else states, axis=1)


def problem(name: str) -> list[jax.Array]:
    """a, b, the state before the first and a cotangent; some decays are 0."""
    rng = np.random.default_rng(0)
    a_shape, b_shape = SHAPES[name]
    a = rng.uniform(0.3, 1.1, a_shape) * (rng.random(a_shape) > 0.1)
    made = [a, *(rng.normal(size=s) for s in (b_shape, b_shape[:1] + b_shape[2:], b_shape))]
    return [jnp.asarray(x, jnp.float32) for x in made]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shards", [1, 2, 8])
@pytest.mark.parametrize("name", SHAPES)
def test_shards_equal_a_loop(name: str, shards: int, reverse: bool) -> None:
    *args, ct = problem(name)
    mesh = parallel.make_mesh({"context": shards}, jax.devices()[:shards])
    split = P(None, "context")
    run = parallel.spmd(
        functools.partial(linear_recurrence, reverse=reverse), mesh, ORDERED,
        (split, split, P()), split,
    )  # fmt: skip

    def both(fn: Any) -> Any:
        out, pull = jax.vjp(fn, *args)
        return [out, *pull(ct)]

    found = jax.jit(lambda: both(run))()
    expected = jax.jit(lambda: both(functools.partial(loop, reverse=reverse)))()
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_without_an_initial_state_it_is_zero() -> None:
    a, b, initial, _ = problem("elementwise")
    mesh = parallel.make_mesh({"context": 4}, jax.devices()[:4])
    split = P(None, "context")
    run = parallel.spmd(linear_recurrence, mesh, ORDERED, (split, split), split)
    expected = loop(a, b, jnp.zeros_like(initial), False)
    np.testing.assert_allclose(jax.jit(run)(a, b), expected, atol=1e-5)
    np.testing.assert_allclose(linear_recurrence(a, b), expected, atol=1e-5)


def test_zigzag_is_refused() -> None:
    a, b, *_ = problem("elementwise")
    mesh = parallel.make_mesh({"context": 2}, jax.devices()[:2])
    split = P(None, "context")
    run = parallel.spmd(linear_recurrence, mesh, parallel.Rules(), (split, split), split)
    with pytest.raises(ValueError, match=r"zigzag; nearest: mesh.attention='ulysses'"):
        jax.eval_shape(run, a, b)
