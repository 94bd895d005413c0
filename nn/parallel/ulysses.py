"""Ulysses (Jacobs et al. 2023): shards of `context` trade positions for heads, attend, trade back.

Between two all-to-alls a shard holds all positions of a part of the heads. Key and value heads that
the shards do not divide are repeated as often as it takes for every shard to get those that its
queries look at.

Legend: B batch, T queries and S keys of this shard, H query heads, G key and value heads, K width.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from nn.parallel import collectives
from nn.parallel.pattern import Pattern
from nn.parallel.ring import Noise, Rows, block_attention


def check_heads(heads: int, context: int) -> None:
    """ValueError where the query heads of a shard do not divide over context."""
    if heads % context:
        raise ValueError(
            f"mesh.attention='ulysses' with mesh.context={context} needs a number of query heads "
            f"per shard of mesh.tensor that is a multiple of it, and there are {heads}; "
            f"nearest: mesh.context={math.gcd(heads, context)}, or mesh.attention='ring'"
        )


def repeated_heads(kv_heads: int, context: int) -> int:
    """Key and value heads that are sent: each of them as often as the shards need it."""
    return math.lcm(kv_heads, context)


def ulysses_attention(
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    pattern: Pattern,
    queries: Rows,
    keys: Rows,
    *,
    slopes_H: jax.Array | None = None,
    noise: Noise | None = None,
    rate: float = 0.0,
) -> jax.Array:
    """`nn.parallel.ring.block_attention` over the keys of all shards, which lie in order.

    Raises:
      ValueError: the query heads are no multiple of the shards.
    """
    shards = collectives.axis_size("context")
    heads, kv_heads = q_BTHK.shape[2], k_BSGK.shape[2]
    check_heads(heads, shards)
    copies = repeated_heads(kv_heads, shards) // kv_heads

    def to_heads(x: jax.Array) -> jax.Array:
        return collectives.all_to_all(x, "context", split=2, concat=1)

    q, k, v = (
        to_heads(q_BTHK),
        to_heads(jnp.repeat(k_BSGK, copies, axis=2)),
        to_heads(jnp.repeat(v_BSGK, copies, axis=2)),
    )

    def own_heads(x: jax.Array | None, dim: int) -> jax.Array | None:
        return None if x is None else collectives.local_slice(x, "context", dim)

    out = block_attention(
        q,
        k,
        v,
        pattern,
        _gathered(queries),
        _gathered(keys),
        ring=False,
        slopes_H=own_heads(slopes_H, 0),
        noise=None if noise is None else noise._replace(rows=own_heads(noise.rows, 1)),
        rate=rate,
    )
    return collectives.all_to_all(out, "context", split=1, concat=2)


def _gathered(rows: Rows) -> Rows:
    """Of all shards."""

    def gather(x_BT: jax.Array | None) -> jax.Array | None:
        return None if x_BT is None else collectives.all_gather(x_BT, "context", 1)

    length = rows.columns.shape[0] * collectives.axis_size("context")
    columns = jnp.arange(length, dtype=jnp.int32)
    return Rows(columns, gather(rows.segments), gather(rows.positions))
