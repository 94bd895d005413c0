"""Sizes of activations as modules give them, and the best of some learning rates."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn import parallel
from nn.analysis import transfer
from nn.families import transformer


def test_coordinates_are_the_sizes_of_what_modules_give() -> None:
    config = transformer.tiny()
    model, (tokens,) = transformer.Model(config), transformer.example(config, 2)
    variables = {"params": parallel.unbox(model.init(jax.random.key(0), tokens))["params"]}
    found = transfer.coordinates(model, variables, tokens)
    logits, left = model.apply(variables, tokens, mutable=["intermediates"])

    def size(x: jax.Array) -> float:
        return float(jnp.sqrt(jnp.mean(jnp.square(x))))

    (residual_LBTD,) = left["intermediates"]["blocks"]["residual"]
    assert found["output"] == pytest.approx(size(logits), rel=1e-5)
    assert found["blocks"] == pytest.approx(size(residual_LBTD), rel=1e-5)
    rows = variables["params"]["embed"]["embedding"][tokens]
    assert found["embed"] == pytest.approx(size(rows), rel=1e-5)
    inner = {f"blocks/{name}" for name in ("attention", "mlp", "mlp/up", "mlp/down", "mlp_norm")}
    assert inner <= found.keys()
    # Of a stack: over all layers, whose norms give vectors of size 1.
    assert found["blocks/mlp_norm"] == pytest.approx(1.0, rel=1e-2)
    again = jax.jit(lambda v: transfer.coordinates(model, v, tokens))(variables)
    assert again.keys() == found.keys()
    for path, value in found.items():
        np.testing.assert_allclose(again[path], value, rtol=1e-4)


def test_spread() -> None:
    assert transfer.spread([2.0, 4.0, 3.0]) == 2.0
    assert transfer.spread([0.0, 1.0]) == math.inf
    assert transfer.spread([math.nan, 1.0]) == math.inf


def test_the_best_rate_is_that_of_the_parabola() -> None:
    rates = [2.0**i for i in range(-8, -1)]
    best, depth = -4.7, 1.3

    def loss(rate: float) -> float:
        return depth + 0.1 * (math.log2(rate) - best) ** 2

    found = transfer.optimum(rates, [loss(rate) for rate in rates])
    assert found.rate == pytest.approx(2**best)
    assert found.loss == pytest.approx(depth)
    assert not found.edge
    for edge, start in ((rates[0], -9.0), (rates[-1], -1.0)):
        found = transfer.optimum(rates, [abs(math.log2(rate) - start) for rate in rates])
        assert (found.rate, found.edge) == (edge, True)
    # A run that diverged beside the best: no parabola.
    found = transfer.optimum(rates[:3], [3.0, 2.0, math.nan])
    assert (found.rate, found.loss, found.edge) == (rates[1], 2.0, False)
    assert transfer.optimum(rates[:3], [2.0, 2.0, 2.0]).rate == rates[0]
    with pytest.raises(ValueError, match="every run diverged"):
        transfer.optimum(rates[:3], [math.inf, math.nan, math.inf])
    with pytest.raises(ValueError, match="in increasing order"):
        transfer.optimum(rates[2::-1], [1.0, 2.0, 3.0])


def test_the_slope_is_in_doublings() -> None:
    widths = [32, 64, 128, 512]
    assert transfer.slope(widths, [0.3 / w for w in widths]) == pytest.approx(-1)
    assert transfer.slope(widths, [w**0.5 for w in widths]) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="at least two"):
        transfer.slope([32, 32], [1.0, 2.0])
