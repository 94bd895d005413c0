"""Ring attention (Liu, Zaharia & Abbeel 2023): every shard of `context` keeps its queries, and the
keys and values go round.

The softmax is taken block by block with running maxima and sums (Milakov & Gimelshein 2018), so no
matrix of all scores exists; with one shard this is attention in blocks on one device. The backward
pass sends keys and values round once more, with their gradients behind them, and finds only q, k,
v, the output and the logarithm of the softmax's sums (Dao et al. 2022).

Under a causal pattern the positions lie in zigzag (`nn.parallel.sequence`): the first half of a
shard's positions is early and the second late. Late queries see all early keys; beyond that a shard
needs, of keys from an earlier shard, the early half for its early queries, and of those from a
later one, the late half for its late queries. So every shard has two half blocks to multiply in
every step and none to mask. Tiles out of the reach of a sliding window are passed over.

Legend: B batch, H query heads, G key and value heads, R = H / G, K head width, T queries and S keys
of this shard, C of one tile, P tiles, N all positions.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from nn.parallel import collectives
from nn.parallel.pattern import Pattern, attention_mask
from nn.parallel.random import bits_at, kept
from nn.parallel.sequence import columns

TILE = 512  # most queries, and most keys, whose scores exist at once
_FAR = -1e30  # the score of a key that is not seen


class Rows(NamedTuple):
    """What is known of the queries or keys of a shard beside their vectors; None where unused.

    columns: (T,) global places in the row. segments: (B, T) documents; a query sees its own only.
    positions: (B, T) of which linear biases are made.
    """

    columns: jax.Array
    segments: jax.Array | None = None
    positions: jax.Array | None = None


class Noise(NamedTuple):
    """Dropout of the attention weights: key data, and the number of each row of heads, (B, H)."""

    key: jax.Array
    rows: jax.Array


Side = tuple[jax.Array, Rows]  # q and the rows of queries, or kv and those of keys


class _Shared(NamedTuple):
    """What all tiles use: slopes (G, R), key data (2,), numbers of the rows (B, G, R), window."""

    slopes: jax.Array | None
    key: jax.Array | None
    rows: jax.Array | None
    window: jax.Array | None


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is static: shards of the ring, sizes, and which tiles of queries meet which of keys."""

    causal: bool
    masked: bool  # every tile needs a mask
    shards: int
    query_tiles: int
    key_tiles: int
    keys: int  # S
    total: int  # N, queries of all shards
    rate: float  # of dropout
    soft_cap: float  # of the scores

    def own(self) -> list[tuple[bool, np.ndarray]]:
        """With the shard's own keys: (whether to mask, pairs of tiles)."""
        pairs = list(itertools.product(range(self.query_tiles), range(self.key_tiles)))
        if not self.causal:
            return [(self.masked, np.asarray(pairs, np.int32))]
        before = [(i, j) for i, j in pairs if i > j]
        same = [(i, i) for i in range(self.query_tiles)]
        parts = [(True, before + same)] if self.masked else [(False, before), (True, same)]
        return [(masked, np.asarray(part, np.int32)) for masked, part in parts if part]

    def others(self, step: jax.Array | int) -> jax.Array | np.ndarray:
        """Pairs of tiles with the keys of the shard that is `step` places before this one."""
        if not self.causal:
            return self.own()[0][1]
        half = self.query_tiles // 2
        block = np.asarray(list(itertools.product(range(half), range(half))), np.int32)
        late = np.asarray([half, 0], np.int32)
        is_earlier = collectives.axis_index("context") >= step
        return jnp.concatenate([block + late, block + jnp.where(is_earlier, 0, half)])


def block_attention(
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    pattern: Pattern,
    queries: Rows,
    keys: Rows,
    *,
    ring: bool,
    slopes_H: jax.Array | None = None,
    noise: Noise | None = None,
    rate: float = 0.0,
    scale: float = 0.0,
    soft_cap: float = 0.0,
) -> jax.Array:
    """softmax(scale q k^T + bias) v over the keys of one shard or of all; (B, T, H, K).

    Args:
      ring: keys are those of all shards of `context`, else those given. With a causal pattern the
        rows are in the order of their columns, and T = S; over a ring they lie in zigzag.
      slopes_H: biases -slope * |distance| (Press et al. 2021), with `positions` in the rows.
      noise, rate: dropout of the weights; `rate` is its probability.
      scale: 0: 1 / sqrt(K). soft_cap: c for scores c tanh(s / c); 0: s.
    """
    T, H, K = q_BTHK.shape[1:]
    S, G = k_BSGK.shape[1:3]
    halves = 2 if pattern.causal and ring else 1
    query_tiles, key_tiles = _tiles(T, halves), _tiles(S, halves)
    shards = collectives.axis_size("context") if ring else 1
    masked = pattern.windowed or queries.segments is not None
    sizes = (shards, query_tiles, key_tiles, S, T * shards)
    plan = _Plan(pattern.causal, masked, *sizes, rate, soft_cap)
    q = q_BTHK * jnp.asarray(scale or K**-0.5, q_BTHK.dtype)
    q = _cut(q, query_tiles, 1).reshape(query_tiles, -1, T // query_tiles, G, H // G, K)
    kv = jnp.stack([_cut(x, key_tiles, 1) for x in (k_BSGK, v_BSGK)], axis=1)
    shared = _Shared(
        None if slopes_H is None else slopes_H.reshape(G, H // G),
        None if noise is None else noise.key,
        None if noise is None else noise.rows.reshape(-1, G, H // G),
        jnp.asarray(pattern.window) if pattern.windowed else None,
    )
    args = (
        q.transpose(0, 1, 3, 4, 2, 5),
        kv.swapaxes(3, 4),
        _cut_rows(queries, query_tiles),
        _cut_rows(keys, key_tiles),
        shared,
    )
    # The gradients of the ring vary as much as its inputs; sums over the mesh come outside.
    held = {axis for leaf in jax.tree.leaves(args) for axis in collectives.varying(leaf)}
    out = _attention(plan, *collectives.vary(args, held | ({"context"} if ring else set())))
    return out.transpose(1, 0, 4, 2, 3, 5).reshape(q_BTHK.shape)


def _tiles(length: int, halves: int) -> int:
    """Into how many tiles `length` is cut, a multiple of `halves`."""
    half = length // halves
    sizes = (c for c in range(min(half, TILE), min(half, TILE) // 4, -1) if half % c == 0)
    return length // next(sizes, half)


def _cut(x: jax.Array, tiles: int, dim: int) -> jax.Array:
    """(..., T, ...) -> (P, ..., C, ...)."""
    shape = (*x.shape[:dim], tiles, -1, *x.shape[dim + 1 :])
    return jnp.moveaxis(x.reshape(shape), dim, 0)


def _cut_rows(rows: Rows, tiles: int) -> Rows:
    return jax.tree.map(lambda x: _cut(x, tiles, x.ndim - 1), rows)


def _pick(tree: Any, index: jax.Array) -> Any:
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, index, keepdims=False), tree)


def _put(tree: Any, index: jax.Array, new: Any) -> Any:
    return jax.tree.map(lambda x, y: lax.dynamic_update_index_in_dim(x, y, index, 0), tree, new)


def _add(x: jax.Array, index: jax.Array, y: jax.Array) -> jax.Array:
    return _put(x, index, _pick(x, index) + y)


def _shift(tree: Any) -> Any:
    return jax.tree.map(lambda x: collectives.shift(x, "context"), tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(plan: _Plan, q: Any, kv: Any, queries: Rows, keys: Rows, shared: _Shared) -> Any:
    """q (P, B, G, R, C, K), scaled; kv (P, 2, B, G, C, K) -> (P, B, G, R, C, K)."""
    return _forward(plan, q, kv, queries, keys, shared)[0]


def _forward(
    plan: _Plan, q: Any, kv: Any, queries: Rows, keys: Rows, shared: _Shared
) -> tuple[jax.Array, Any]:
    """The output, and what the backward pass needs."""
    zeros = jnp.zeros_like(q, jnp.float32)
    state = (zeros, jnp.full_like(zeros[..., 0], _FAR), zeros[..., 0])

    def visit(state: Any, masked: bool, kv: Any, keys: Rows, pairs: Any) -> Any:
        def body(state: Any, pair: jax.Array) -> Any:
            i, j = pair[0], pair[1]
            ours, theirs = _pick((q, queries), i), _pick((kv, keys), j)
            old = _pick(state, i)
            new = _if_seen(
                plan,
                shared.window,
                ours[1].columns,
                theirs[1].columns,
                lambda: _tile(plan, masked, old, ours, theirs, shared),
                lambda: old,
            )
            return _put(state, i, new), None

        return lax.scan(body, state, pairs)[0]

    for masked, pairs in plan.own():
        state = visit(state, masked, kv, keys, pairs)

    def step(carry: Any, number: jax.Array | int, last: bool = False) -> Any:
        # The keys of the next step are on their way while this one is computed.
        state, passing = carry
        following = passing if last else _shift(passing)
        there = _rows_of(plan, passing[1], number)
        state = visit(state, plan.masked, passing[0], there, plan.others(number))
        return (state, following), None

    if plan.shards > 1:
        carry = (state, _shift((kv, keys[1:])))
        if plan.shards > 2:
            carry = lax.scan(step, carry, jnp.arange(1, plan.shards - 1))[0]
        state = step(carry, plan.shards - 1, last=True)[0][0]
    total, largest, mass = state
    # Named, so that a remat policy can keep what the backward pass needs of the ring.
    out = checkpoint_name((total / mass[..., None]).astype(q.dtype), "attention")
    log_sum = checkpoint_name(largest + jnp.log(mass), "attention")
    return out, (q, kv, queries, keys, shared, out, log_sum)


def _backward(plan: _Plan, residuals: Any, d_out: jax.Array) -> Any:
    """Gradients of q and kv: those of keys and values follow them round the ring."""
    q, kv, queries, keys, shared, out, log_sum = residuals
    inner = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    own = ((q, queries), d_out, log_sum, inner)
    zeros = jnp.zeros_like(kv, jnp.float32)

    def visit(d_q: Any, d_kv: Any, masked: bool, kv: Any, keys: Rows, pairs: Any) -> Any:
        def body(carry: Any, pair: jax.Array) -> Any:
            i, j = pair[0], pair[1]
            ours, theirs = _pick(own, i), _pick((kv, keys), j)
            q_part, kv_part = _if_seen(
                plan,
                shared.window,
                ours[0][1].columns,
                theirs[1].columns,
                lambda: _tile_gradient(plan, masked, ours, theirs, shared),
                lambda: (jnp.zeros_like(d_q[0]), jnp.zeros_like(zeros[0])),
            )
            return (_add(carry[0], i, q_part), _add(carry[1], j, kv_part)), None

        return lax.scan(body, (d_q, d_kv), pairs)[0]

    d_q, d_kv = jnp.zeros_like(q, jnp.float32), zeros
    for masked, pairs in plan.own():
        d_q, d_kv = visit(d_q, d_kv, masked, kv, keys, pairs)

    def step(carry: Any, number: jax.Array | int, last: bool = False) -> Any:
        d_q, d_kv, passing = carry
        following = passing if last else _shift(passing)
        there = _rows_of(plan, passing[1], number)
        d_q, fresh = visit(d_q, zeros, plan.masked, passing[0], there, plan.others(number))
        return (d_q, _shift(d_kv) + fresh, following), None

    if plan.shards > 1:
        carry = (d_q, d_kv, _shift((kv, keys[1:])))
        if plan.shards > 2:
            carry = lax.scan(step, carry, jnp.arange(1, plan.shards - 1))[0]
        d_q, d_kv, _ = step(carry, plan.shards - 1, last=True)[0]
        d_kv = _shift(d_kv)
    return d_q.astype(q.dtype), d_kv.astype(kv.dtype), None, None, None


_attention.defvjp(_forward, _backward)


def _rows_of(plan: _Plan, sent: tuple[Any, Any], step: jax.Array | int) -> Rows:
    """The rows of the shard `step` places before this one, whose columns need not be sent."""
    shard = (collectives.axis_index("context") - step) % plan.shards
    return Rows(_cut(columns(plan.keys, shard), plan.key_tiles, 0), *sent)


def _if_seen(
    plan: _Plan,
    window: jax.Array | None,
    query_C: jax.Array,
    key_C: jax.Array,
    tile: Callable[[], Any],
    old: Callable[[], Any],
) -> Any:
    """tile(), or old() where no key of the tile is in the window of a query; C are columns."""
    if window is None:
        return tile()
    behind = query_C.min() - key_C.max()  # the nearest pair, where keys come first
    ahead = key_C.min() - query_C.max()
    limit = 1 if plan.causal else window
    return lax.cond((behind < window) & (ahead < limit), tile, old)


def _scores(plan: _Plan, masked: bool, ours: Side, theirs: Side, shared: _Shared) -> jax.Array:
    """Of one tile, (B, G, R, C, C'), float32."""
    (q, queries), (kv, keys) = ours, theirs
    scores = jnp.einsum("bgrtk,bgsk->bgrts", q, kv[0], preferred_element_type=jnp.float32)
    if plan.soft_cap:
        scores = plan.soft_cap * jnp.tanh(scores / plan.soft_cap)
    if shared.slopes is not None:
        assert queries.positions is not None and keys.positions is not None
        distance = jnp.abs(queries.positions[:, :, None] - keys.positions[:, None, :])
        slopes = shared.slopes[None, :, :, None, None]
        scores = scores - slopes * distance[:, None, None].astype(jnp.float32)
    if masked:
        mask = attention_mask(
            queries.columns[None],
            keys.columns[None],
            causal=plan.causal,
            window=0 if shared.window is None else shared.window,
            query_segments=queries.segments,
            key_segments=keys.segments,
        )
        assert mask is not None
        scores = scores + jnp.where(mask, 0.0, _FAR)[:, :, None]
    return scores


def _dropout(
    plan: _Plan, queries: Rows, keys: Rows, shared: _Shared
) -> Callable[[jax.Array], jax.Array]:
    """What drops weights (B, G, R, C, C'): a function of their global place."""
    if shared.key is None or shared.rows is None:
        return lambda weights: weights
    rows = shared.rows[..., None] * jnp.uint32(plan.total)
    rows = rows + queries.columns.astype(jnp.uint32)[None, None, None]
    bits = bits_at(
        shared.key, rows[..., None], keys.columns.astype(jnp.uint32).reshape(1, 1, 1, 1, -1)
    )
    mask = kept(bits, plan.rate)
    return lambda weights: jnp.where(mask, weights / (1.0 - plan.rate), 0.0)


def _tile(
    plan: _Plan, masked: bool, state: Any, ours: Side, theirs: Side, shared: _Shared
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The running sums (B, G, R, C, K), maxima and masses (B, G, R, C) after one more tile.

    A tile that a query sees nothing of adds a wrong mass, which is multiplied by 0 as soon as the
    query sees a key; every query sees itself.
    """
    total, largest, mass = state
    (_, queries), (kv, keys) = ours, theirs
    scores = _scores(plan, masked, ours, theirs, shared)
    new = jnp.maximum(largest, scores.max(axis=-1))
    weights, shrink = jnp.exp(scores - new[..., None]), jnp.exp(largest - new)
    mass = mass * shrink + weights.sum(axis=-1)
    weights = _dropout(plan, queries, keys, shared)(weights).astype(kv.dtype)
    part = jnp.einsum("bgrts,bgsk->bgrtk", weights, kv[1], preferred_element_type=jnp.float32)
    return total * shrink[..., None] + part, new, mass


def _tile_gradient(
    plan: _Plan, masked: bool, ours: tuple[Side, Any, Any, Any], theirs: Side, shared: _Shared
) -> tuple[jax.Array, jax.Array]:
    """What one tile adds to the gradients of its q and its kv, float32 (Dao et al. 2022, B.2)."""
    own, d_out, log_sum, inner = ours
    (q, queries), (kv, keys) = own, theirs
    scores = _scores(plan, masked, own, theirs, shared)
    weights = jnp.exp(scores - log_sum[..., None])
    wide = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    drop = _dropout(plan, queries, keys, shared)
    d_weights = drop(wide("bgrtk,bgsk->bgrts", d_out, kv[1]))
    d_scores = weights * (d_weights - inner[..., None])
    if plan.soft_cap:  # the slope of tanh; scores beyond the cap are those of keys not seen
        d_scores = d_scores * (1 - (jnp.clip(scores / plan.soft_cap, -1.0, 1.0)) ** 2)
    d_scores = d_scores.astype(q.dtype)
    d_v = wide("bgrts,bgrtk->bgsk", drop(weights).astype(q.dtype), d_out)
    d_k = wide("bgrts,bgrtk->bgsk", d_scores, q)
    return wide("bgrts,bgsk->bgrtk", d_scores, kv[0]), jnp.stack([d_k, d_v])
