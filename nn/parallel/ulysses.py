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


def choose(
    wanted: str, context: int, tensor: int, heads: int, kv_heads: int, in_order: bool
) -> tuple[str, str]:
    """Which attention over `context` a run has, and why in words ("" where nothing is split).

    A shard of ring attention sends its keys and values n - 1 times, and Ulysses 1 - 1/n of its
    queries, keys, values and outputs; but the ring computes while it sends. So "auto" takes
    Ulysses where it sends at most half as much.

    Args:
      wanted: auto | ring | ulysses | gather. context, tensor: sizes of the mesh.
      heads, kv_heads: of the whole model, 0 where it has no attention.
      in_order: the model has a recurrence or convolution over positions.
    Raises:
      ValueError: `wanted` cannot be; says what can.
    """
    if context == 1:
        return ("ring" if wanted == "auto" else wanted), ""
    zigzag = wanted in ("ring", "gather")
    if zigzag and in_order:
        raise ValueError(
            f"mesh.attention={wanted!r} lays positions out in zigzag, and the model has a "
            "recurrence or convolution over positions, which needs them in order; "
            "nearest: mesh.attention='ulysses'"
        )
    own = max(heads // tensor, 1)
    if in_order or wanted == "ulysses":
        if heads:
            check_heads(own, context)
        return "ulysses", "the model needs positions in order" if in_order else "as configured"
    if zigzag:
        return wanted, "as configured"
    if own % context:
        return "ring", f"{own} heads per shard do not divide over mesh.context={context}"
    own_kv = kv_heads // tensor if kv_heads % tensor == 0 else min(kv_heads, own)
    ring, ulysses = own_kv * context, own + repeated_heads(own_kv, context)
    times = f"Ulysses sends {ring / ulysses:.1f} times less"
    return ("ulysses", times) if ring >= 2 * ulysses else ("ring", f"{times}, which is not 2")


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
    scale: float = 0.0,
    soft_cap: float = 0.0,
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

    def own_heads(x: jax.Array, dim: int) -> jax.Array:
        return collectives.local_slice(x, "context", dim)

    out = block_attention(
        q,
        k,
        v,
        pattern,
        ours := _gathered(queries),
        ours if keys is queries else _gathered(keys),
        ring=False,
        slopes_H=None if slopes_H is None else own_heads(slopes_H, 0),
        noise=None if noise is None else noise._replace(rows=own_heads(noise.rows, 1)),
        rate=rate,
        scale=scale,
        soft_cap=soft_cap,
    )
    return collectives.all_to_all(out, "context", split=1, concat=2)


def _gathered(rows: Rows) -> Rows:
    """Of all shards."""

    def gather(x_BT: jax.Array | None) -> jax.Array | None:
        return None if x_BT is None else collectives.all_gather(x_BT, "context", 1)

    length = rows.columns.shape[0] * collectives.axis_size("context")
    columns = jnp.arange(length, dtype=jnp.int32)
    return Rows(columns, gather(rows.segments), gather(rows.positions))
