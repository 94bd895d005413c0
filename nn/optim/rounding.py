"""Stochastic rounding: updates of low-precision parameters that are right on average.

A bfloat16 parameter keeps 8 bits; an update smaller than half of the last is lost by rounding to
nearest. Rounding up with the probability of the remainder (Gupta et al. 2015) keeps the mean.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def round_stochastically(x: jax.Array, key: jax.Array) -> jax.Array:
    """float32 -> bfloat16, up or down at random, so that the expectation is x."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint32) & jnp.uint32(0xFFFF)
    # Adding up to one unit of the kept part carries into it with the right probability; the
    # magnitude is what is rounded, so the sign plays no part. Non-finite values are left alone.
    rounded = (bits + noise) & jnp.uint32(0xFFFF0000)
    kept = jnp.where(jnp.isfinite(x), rounded, bits)
    return jax.lax.bitcast_convert_type(kept, jnp.float32).astype(jnp.bfloat16)


def apply_updates_stochastically(params: Any, updates: Any, key: jax.Array) -> Any:
    """params + updates in float32, rounded stochastically to the dtype of the parameters.

    Parameters of other dtypes than bfloat16 are updated exactly.
    """
    leaves, tree = jax.tree.flatten(params)
    keys = jax.tree.unflatten(tree, list(jax.random.split(key, len(leaves))))

    def one(p: jax.Array, u: jax.Array, k: jax.Array) -> jax.Array:
        exact = p.astype(jnp.float32) + u.astype(jnp.float32)
        if p.dtype == jnp.bfloat16:
            return round_stochastically(exact, k)
        return exact.astype(p.dtype)

    return jax.tree.map(one, params, updates, keys)
