"""Tokens to the experts that they chose and back, whichever shard of `expert` holds those.

Three ways, of one result: `gather` brings every token to every shard, each shard adds up what its
own experts say, and the sums are scattered; `all_to_all` sends each shard a bucket that has room
for the worst case; `ragged` sends what there is (`jax.lax.ragged_all_to_all`; CPUs, which lack it,
move the same rows by the same offsets in another way). Rows are moved by lists of where each one
goes, so that forward and backward passes are both reads and no write meets another.

Legend: N tokens, D width, K choices per token, E experts, S slots, G groups, n shards of `expert`;
i sends to j.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from nn.parallel import collectives
from nn.parallel.mesh import current_rules, platform
from nn.parallel.weight import bound_axis

# (x_ND, group_NK, bound) -> (N, K, D): what expert group_NK of this shard says of each row, 0 where
# it is no expert's (group = their number); at most `bound` of them are.
Compute = Callable[[jax.Array, jax.Array, int], jax.Array]
AXIS = "expert"


def ranks(group_NK: jax.Array, groups: int) -> tuple[jax.Array, jax.Array]:
    """Each choice's number among those of its group, (N, K), and the size of each group, (G,).

    First choices come before all second ones, as in GShard (Lepikhin et al. 2021, algorithm 1).
    A group equal to `groups` is none.
    """
    flat = group_NK.T.reshape(-1)
    sizes_G = jax.nn.one_hot(flat, groups, dtype=flat.dtype).sum(axis=0)
    order = jnp.argsort(flat, stable=True)
    starts = jnp.concatenate([jnp.zeros_like(sizes_G[:1]), jnp.cumsum(sizes_G)])
    ranked = jnp.arange(flat.size) - starts[flat[order]]
    rank = jnp.zeros_like(flat).at[order].set(ranked, unique_indices=True)
    return rank.reshape(group_NK.shape[::-1]).T, sizes_G


def place(x_ND: jax.Array, slot_NK: jax.Array, size: int) -> jax.Array:
    """(size, D): row slot_NK[n, k] is x_ND[n]; 0 where none goes. A slot of `size` is none."""
    return _place(*_alike(x_ND, slot_NK), size)


def back(y_SD: jax.Array, slot_NK: jax.Array) -> jax.Array:
    """(N, K, D): the row of each slot; 0 where the slot is none. The transpose of `place`."""
    return _back(*_alike(y_SD, slot_NK), y_SD.shape[0])


def _alike(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both typed as varying over the same axes, as the types of a custom gradient ask."""
    axes = {*collectives.varying(x), *collectives.varying(y)}
    return collectives.vary(x, axes), collectives.vary(y, axes)


def _rows(x: jax.Array, index: jax.Array) -> jax.Array:
    return jnp.take(x, index, axis=0, mode="fill", fill_value=0)


def _sources(slot_NK: jax.Array, size: int) -> jax.Array:
    """For each slot the number n K + k of what goes there; N K where nothing does."""
    flat = slot_NK.reshape(-1)
    empty = jnp.full((size,), flat.size, flat.dtype)
    return empty.at[flat].set(jnp.arange(flat.size, dtype=flat.dtype), mode="drop")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _place(x_ND: jax.Array, slot_NK: jax.Array, size: int) -> jax.Array:
    return _rows(x_ND, _sources(slot_NK, size) // slot_NK.shape[1])


def _place_forward(x_ND: jax.Array, slot_NK: jax.Array, size: int) -> Any:
    return _place(x_ND, slot_NK, size), slot_NK


def _place_backward(size: int, slot_NK: jax.Array, d_SD: jax.Array) -> Any:
    return _rows(d_SD, slot_NK).sum(axis=1), None


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _back(y_SD: jax.Array, slot_NK: jax.Array, size: int) -> jax.Array:
    return _rows(y_SD, slot_NK)


def _back_forward(y_SD: jax.Array, slot_NK: jax.Array, size: int) -> Any:
    return _back(y_SD, slot_NK, size), slot_NK


def _back_backward(size: int, slot_NK: jax.Array, d_NKD: jax.Array) -> Any:
    return _rows(d_NKD.reshape(-1, d_NKD.shape[-1]), _sources(slot_NK, size)), None


_place.defvjp(_place_forward, _place_backward)
_back.defvjp(_back_forward, _back_backward)


def dispatch(
    compute: Compute,
    x_ND: jax.Array,
    expert_NK: jax.Array,
    weight_NK: jax.Array,
    experts: int,
    limit: int,
) -> jax.Array:
    """sum_k weight_NK expert_NK(x), (N, D), by `Rules.dispatch`.

    Args:
      compute: of the experts of this shard.
      expert_NK: global numbers; `experts` for none.
      limit: at most so many of these tokens go to one expert.
    Raises:
      ValueError: an unknown way, or experts that the rules split over an axis other than `expert`.
    """
    axis, (N, K) = bound_axis("expert"), expert_NK.shape
    if axis not in (AXIS, None):
        raise ValueError(
            f"mesh.rules: expert={axis}: experts can be split over mesh.expert only, over which "
            f"tokens are split too; nearest: expert=expert"
        )
    own = experts // (collectives.axis_size(AXIS) if axis else 1)
    bound = min(N * min(K, own), limit * own)
    if axis is None:
        return combine(compute(x_ND, expert_NK, bound), weight_NK)
    way = WAYS[current_rules().dispatch]
    return way(compute, x_ND, expert_NK, weight_NK, own, bound)


def combine(out_NKD: jax.Array, weight_NK: jax.Array) -> jax.Array:
    """Weighted sum over the choices, in float32."""
    y_ND = jnp.einsum(
        "nkd,nk->nd",
        out_NKD,
        weight_NK.astype(out_NKD.dtype),
        preferred_element_type=jnp.float32,
    )
    return y_ND.astype(out_NKD.dtype)


def _auto(*args: Any) -> jax.Array:
    return (_gather if platform() == "cpu" else _ragged)(*args)


def _gather(
    compute: Compute,
    x_ND: jax.Array,
    expert_NK: jax.Array,
    weight_NK: jax.Array,
    own: int,
    bound: int,
) -> jax.Array:
    n, shard = collectives.axis_size(AXIS), collectives.axis_index(AXIS)
    x, expert, weight = (collectives.all_gather(a, AXIS, 0) for a in (x_ND, expert_NK, weight_NK))
    local = expert - shard * own
    local = jnp.where((local >= 0) & (local < own), local, own)
    return collectives.psum_scatter(combine(compute(x, local, n * bound), weight), AXIS, 0)


def _all_to_all(
    compute: Compute,
    x_ND: jax.Array,
    expert_NK: jax.Array,
    weight_NK: jax.Array,
    own: int,
    bound: int,
) -> jax.Array:
    n = collectives.axis_size(AXIS)
    peer_NK = expert_NK // own  # n for none
    rank_NK, _ = ranks(peer_NK, n)
    size = n * bound
    slot_NK = jnp.where(peer_NK < n, peer_NK * bound + rank_NK, size)
    source = _sources(slot_NK, size)
    local = jnp.take(expert_NK.reshape(-1) % own, source, mode="fill", fill_value=own)
    rows = collectives.all_to_all(place(x_ND, slot_NK, size), AXIS)
    out = compute(rows, collectives.all_to_all(local, AXIS)[:, None], size)[:, 0]
    return combine(back(collectives.all_to_all(out, AXIS), slot_NK), weight_NK)


def _ragged(
    compute: Compute,
    x_ND: jax.Array,
    expert_NK: jax.Array,
    weight_NK: jax.Array,
    own: int,
    bound: int,
) -> jax.Array:
    n, shard = collectives.axis_size(AXIS), collectives.axis_index(AXIS)
    size, count = n * bound, expert_NK.size
    rank_NK, sizes_E = ranks(expert_NK, n * own)
    starts = jnp.cumsum(sizes_E) - sizes_E
    there = expert_NK < n * own
    slot_NK = jnp.where(there, starts[jnp.where(there, expert_NK, 0)] + rank_NK, count)
    sizes_ije = collectives.all_gather(sizes_E[None], AXIS, 0).reshape(n, n, own)
    sizes_ij = sizes_ije.sum(axis=2)
    first_ij = jnp.cumsum(sizes_ij, axis=1) - sizes_ij  # where i holds what it sends to j
    start_ij = jnp.cumsum(sizes_ij, axis=0) - sizes_ij  # where j keeps what comes from i
    rows = _exchange(place(x_ND, slot_NK, count), size, sizes_ij, first_ij, start_ij)
    # What has come lies in order of sender, then of expert.
    ends = jnp.cumsum(lax.dynamic_index_in_dim(sizes_ije, shard, 1, False).reshape(-1))
    segment = jnp.searchsorted(ends, jnp.arange(size), side="right", method="compare_all")
    local = jnp.where(segment < n * own, segment % own, own)
    out = compute(rows, local[:, None], size)[:, 0]
    out = _exchange(out, count, sizes_ij.T, start_ij.T, first_ij.T)
    return combine(back(out, slot_NK), weight_NK)


def _exchange(
    x: jax.Array, size: int, sizes_ij: jax.Array, first_ij: jax.Array, start_ij: jax.Array
) -> jax.Array:
    """(size, D): shard i sends sizes_ij rows, from first_ij on, which j keeps from start_ij on."""
    move = _emulated if platform() == "cpu" else _exchanged
    return move(x, size, sizes_ij, first_ij, start_ij)


def _exchanged(
    x: jax.Array, size: int, sizes_ij: jax.Array, first_ij: jax.Array, start_ij: jax.Array
) -> jax.Array:
    shard = collectives.axis_index(AXIS)
    first, sizes, start = (
        lax.dynamic_index_in_dim(a, shard, 0, False).astype(jnp.int32)
        for a in (first_ij, sizes_ij, start_ij)
    )
    coming = lax.dynamic_index_in_dim(sizes_ij, shard, 1, False).astype(jnp.int32)
    room = collectives.vary(jnp.zeros((size, x.shape[1]), x.dtype), collectives.varying(x))
    return lax.ragged_all_to_all(x, room, first, sizes, start, coming, axis_name=AXIS)


def _emulated(
    x: jax.Array, size: int, sizes_ij: jax.Array, first_ij: jax.Array, start_ij: jax.Array
) -> jax.Array:
    shard, total = collectives.axis_index(AXIS), jnp.zeros((), x.dtype)
    for i, rows in enumerate(collectives.all_gather(x[None], AXIS, 0)):
        offset = jnp.arange(size) - start_ij[i, shard]
        mine = (offset >= 0) & (offset < sizes_ij[i, shard])
        total = total + _rows(rows, jnp.where(mine, first_ij[i, shard] + offset, rows.shape[0]))
    return total


WAYS: dict[str, Callable[..., jax.Array]] = {
    "auto": _auto,
    "gather": _gather,
    "all_to_all": _all_to_all,
    "ragged": _ragged,
}
