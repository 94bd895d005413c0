"""Linear recurrences h_t = a_t h_{t-1} + b_t over positions that `context` splits.

Each shard scans its own positions (Blelloch 1990; Martin & Cundy 2018); then the shards exchange
the two numbers that a whole shard amounts to, h_out = a h_in + b, and each adds what flows in. Any
number of shards gives the exact result. Positions lie in order: the contiguous layout.

Legend: B batch, T positions of this shard, ... any further dimensions.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from nn.parallel import collectives
from nn.parallel.sequence import need_order


def combine(
    first: tuple[jax.Array, jax.Array], second: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Two steps h -> a h + b in one; the dimensions of a may be 1 where those of b are not."""
    (a1, b1), (a2, b2) = first, second
    return a1 * a2, a2 * b1 + b2


def carry_in(
    a: jax.Array, b: jax.Array, initial: jax.Array | None = None, reverse: bool = False
) -> jax.Array:
    """The state that enters this shard, of the shape of b.

    For a layer that scans its own positions in its own way, such as the chunks of matrices of
    state space duality (Dao & Gu 2024).

    Args:
      a, b: what the whole shard does to a state, h -> a h + b; of equal rank, a broadcasts to b.
      initial: the state before the first position of all; zeros by default.
      reverse: states flow from later shards to earlier ones.
    Raises:
      ValueError: positions are not in order.
    """
    need_order("a recurrence over positions")
    start = jnp.zeros_like(b) if initial is None else initial
    shards = collectives.axis_size("context")
    if shards == 1:
        return start
    a_N, b_N = (collectives.all_gather(x[None], "context", 0) for x in (a, b))
    a_N, b_N = lax.associative_scan(combine, (a_N, b_N), reverse=reverse, axis=0)
    # After n of the shards on the way, for n from 0.
    after = a_N * start[None] + b_N
    entering = jnp.concatenate(
        [after[1:], _as(start, after)] if reverse else [_as(start, after), after[:-1]]
    )
    index = collectives.axis_index("context")
    return lax.dynamic_index_in_dim(entering, index, keepdims=False)


def _as(start: jax.Array, after: jax.Array) -> jax.Array:
    """start, (1, ...), of the type of `after`."""
    return collectives.vary(start[None], collectives.varying(after))


def linear_recurrence(
    a_BT: jax.Array,
    b_BT: jax.Array,
    initial_B: jax.Array | None = None,
    reverse: bool = False,
) -> jax.Array:
    """All states h_t = a_t h_{t-1} + b_t, (B, T, ...), of the shape of b.

    Args:
      a_BT: (B, T, ...), broadcasts to b, with as many dimensions: one decay for a matrix of states,
        say, is (B, T, H, 1, 1) beside (B, T, H, P, N).
      b_BT: (B, T, ...).
      initial_B: (B, ...), the state before the first position of all shards; zeros by default.
      reverse: h_t = a_t h_{t+1} + b_t, and `initial_B` is after the last.
    Raises:
      ValueError: positions are not in order.
    """
    a_BT, b_BT = lax.associative_scan(combine, (a_BT, b_BT), reverse=reverse, axis=1)
    last = 0 if reverse else -1
    if initial_B is None and collectives.axis_size("context") == 1:
        return b_BT
    entering_B = carry_in(a_BT[:, last], b_BT[:, last], initial_B, reverse)
    return a_BT * entering_B[:, None] + b_BT
