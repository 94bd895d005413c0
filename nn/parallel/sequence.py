"""Where the positions of a sequence lie when `context` splits them.

contiguous: shard i holds the i-th part. zigzag: the sequence is cut into 2n parts and shard i holds
parts i and 2n - 1 - i, so that under a causal mask every shard has the same work (Brandon et al.
2023, striped attention, gave the idea; the layout is that of Zhu 2024, ring-flash-attention).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from nn import names
from nn.parallel import collectives
from nn.parallel.mesh import current_rules

LAYOUTS = dict.fromkeys(("contiguous", "zigzag"))


def order(length: int, shards: int, layout: str) -> np.ndarray:
    """The global position at each place when the shards are laid end to end, (length,) int.

    Raises:
      ValueError: the parts do not divide the length; names the nearest length that they do.
    """
    names.lookup("layout", layout, LAYOUTS)
    parts = shards if layout == "contiguous" else 2 * shards
    if shards > 1 and length % parts:
        raise ValueError(
            f"{length} positions cannot be cut into the {parts} parts of mesh.context={shards}; "
            f"nearest length: {max(round(length / parts), 1) * parts}"
        )
    if shards == 1 or layout == "contiguous":
        return np.arange(length)
    pieces = np.arange(length).reshape(parts, -1)
    return np.concatenate([pieces[[i, parts - 1 - i]].reshape(-1) for i in range(shards)])


def columns(size: int, shard: jax.Array | int | None = None) -> jax.Array:
    """Global positions of the `size` that this (or another) shard of `context` holds, (size,)."""
    shards = collectives.axis_size("context")
    shard = collectives.axis_index("context") if shard is None else shard
    local = jnp.arange(size, dtype=jnp.int32)
    if shards == 1 or current_rules().layout == "contiguous":
        return shard * size + local
    half = size // 2
    low = shard * half + local[:half]
    high = (2 * shards - 1 - shard) * half + local[: size - half]
    return jnp.concatenate([low, high])


def numbered(tokens_BT: jax.Array, whole: bool = False) -> jax.Array:
    """Positions 0, 1, ... of rows, (B, T): those that this shard of `context` holds, or `whole`
    rows that every shard has."""
    places = jnp.arange if whole else columns
    return places(tokens_BT.shape[1])[None] + jnp.zeros_like(tokens_BT)


def gathered(x: jax.Array, dim: int) -> jax.Array:
    """All positions of something that `context` splits along `dim`, in order."""
    shards = collectives.axis_size("context")
    x = collectives.all_gather(x, "context", dim)
    if shards == 1 or current_rules().layout == "contiguous":
        return x
    place = np.argsort(order(x.shape[dim], shards, current_rules().layout))
    return jnp.take(x, place, axis=dim)


def need_order(what: str) -> None:
    """ValueError where the positions of a shard of `context` do not follow one another."""
    layout = current_rules().layout
    if collectives.axis_size("context") > 1 and layout != "contiguous":
        raise ValueError(
            f"{what} needs them in order, and mesh.attention='ring' lays them out in {layout}; "
            "nearest: mesh.attention='ulysses'"
        )
