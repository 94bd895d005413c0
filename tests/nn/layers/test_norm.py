"""Batch normalisation beyond PyTorch's numbers, which tests/parity/norms.py compares."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn.layers.norm import BatchNorm


def run(x: Any, mean: float, **options: Any) -> tuple[jax.Array, Any]:
    features = x.shape[-1]
    params = {"scale": jnp.ones(features), "bias": jnp.zeros(features)}
    stats = {"mean": jnp.full(features, mean), "var": jnp.ones(features)}
    layer = BatchNorm(train=True, **options)
    y, updated = layer.apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])
    return y, updated["batch_stats"]


def test_moments_are_exact_far_from_zero() -> None:
    """One pass over the input, shifted by the running mean; unshifted, all digits would be lost."""
    rng = np.random.default_rng(0)
    x = (4000 + rng.normal(size=(64, 3, 5))).astype(np.float32)
    wide = x.astype(np.float64).reshape(-1, 5)
    y, stats = run(jnp.asarray(x), mean=4000.5, momentum=0.0, unbiased=False, eps=0.0)
    np.testing.assert_allclose(stats["mean"], wide.mean(axis=0), rtol=1e-7)
    np.testing.assert_allclose(stats["var"], wide.var(axis=0), rtol=1e-5)
    np.testing.assert_allclose(
        np.asarray(y).reshape(-1, 5), (wide - wide.mean(axis=0)) / wide.std(axis=0), atol=2e-3
    )


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_a_constant_channel_becomes_its_bias(value: float) -> None:
    x = jnp.full((6, 7, 2), value)
    y, pull = jax.vjp(lambda x: run(x, mean=0.3)[0], x)
    assert float(jnp.abs(y).max()) <= 1e-4 * max(1.0, value)
    assert bool(jnp.isfinite(pull(jnp.ones_like(y))[0]).all())


def test_half_precision_is_normalised_in_float32() -> None:
    x = (100 + jax.random.normal(jax.random.key(0), (256, 4))).astype(jnp.bfloat16)
    y, stats = run(x, mean=0.0, momentum=0.0)
    assert y.dtype == jnp.bfloat16 and stats["mean"].dtype == jnp.float32
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(stats["mean"], exact.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(stats["var"], exact.var(axis=0, ddof=1), rtol=1e-2)
