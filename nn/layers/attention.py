"""Dot-product attention: multi-head, grouped-query, causal, windowed, cross, packed, cached.

Legend: B batch, T query positions, S key positions, D residual width, H query heads, G key and
value heads, R = H / G queries per key head, K head width, L layers.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name

from nn import initializers
from nn.layers.dropout import Dropout
from nn.layers.position import alibi_slopes, rotate
from nn.parallel import BATCH_AXES, Layer, axis_index, axis_size, einsum, enter, split_axis
from nn.parallel.collectives import local_slice, varying
from nn.parallel.mesh import current_rules
from nn.parallel.pattern import Pattern as Pattern
from nn.parallel.pattern import attention_mask as attention_mask
from nn.parallel.random import rows_here
from nn.parallel.ring import Noise, Rows, block_attention
from nn.parallel.sequence import columns
from nn.parallel.tensor import einsum_parts
from nn.parallel.ulysses import ulysses_attention
from nn.parallel.weight import Initializer, Weight

Table = tuple[jax.Array, jax.Array]  # cos and sin of the rotary embedding
Segments = tuple[jax.Array | None, jax.Array | None]  # of queries (B, T) and of keys (B, S)
ALL = Pattern()


class Cache(struct.PyTreeNode):
    """Keys and values of the positions seen so far, all layers: (L, B, G, S, K)."""

    key: jax.Array
    value: jax.Array

    @classmethod
    def zeros(cls, shape: tuple[int, ...], dtype: jnp.dtype) -> Cache:
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    def write(
        self, layer: jax.Array, positions_BT: jax.Array, k_BTGK: jax.Array, v_BTGK: jax.Array
    ) -> Cache:
        """Store new keys and values of one layer at each row's own positions."""
        rows = jnp.arange(positions_BT.shape[0])[:, None]

        def put(store: jax.Array, new: jax.Array) -> jax.Array:
            # Positions outside the store (padding) are dropped rather than clamped onto others.
            return store.at[layer, rows, :, positions_BT].set(new.astype(store.dtype), mode="drop")

        return Cache(put(self.key, k_BTGK), put(self.value, v_BTGK))


def attend(
    q_BTHK: jax.Array,
    k_BGSK: jax.Array,
    v_BGSK: jax.Array,
    mask: jax.Array | None,
    bias: jax.Array | None = None,
    dropout: Dropout | None = None,
    causal: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """softmax(q k^T / sqrt(K) + bias) v; Vaswani et al. 2017, eq. 1; scores in float32.

    Args:
      mask: bool, broadcasts to (B, 1, T, S); bias: float, broadcasts to (B, H, T, S).
      causal: T = S and the mask lets no query see a later column: those that no query of a part of
        the row sees are left out of its products.
    Returns:
      (B, T, H, K), and the attention weights (B, H, T, S).
    """
    B, T, H, K = q_BTHK.shape
    G, S = k_BGSK.shape[1:3]
    # Dropout's mask is one of the whole row.
    parts = _parts(T) if causal and dropout is None else 1
    rows = T // parts
    q = q_BTHK * jnp.asarray(K**-0.5, q_BTHK.dtype)
    q_BGRTK = q.reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4)
    outs, weights = [], []
    for start in range(0, T, rows):
        end = start + rows
        seen = S if parts == 1 else end
        out, own = _attend_part(
            q_BGRTK[:, :, :, start:end],
            k_BGSK[:, :, :seen],
            v_BGSK[:, :, :seen],
            None if mask is None else mask[:, :, start:end, :seen],
            None if bias is None else bias[:, :, start:end, :seen],
            dropout,
        )
        outs.append(out)
        weights.append(jnp.pad(own, ((0, 0), (0, 0), (0, 0), (0, S - seen))))
    out_BGRTK = jnp.concatenate(outs, axis=3)
    out = out_BGRTK.transpose(0, 3, 1, 2, 4).reshape(B, T, H, K)
    return out, jnp.concatenate(weights, axis=2)


def _parts(length: int) -> int:
    """Into how many parts a causal row is cut: at most 4, of at least 64 queries.

    With 4 parts 5/8 of the products are left; more of them would be small ones.
    """
    return next(n for n in (4, 2, 1) if n == 1 or (length % n == 0 and length // n >= 64))


def _attend_part(
    q_BGRTK: jax.Array,
    k_BGSK: jax.Array,
    v_BGSK: jax.Array,
    mask: jax.Array | None,
    bias: jax.Array | None,
    dropout: Dropout | None,
) -> tuple[jax.Array, jax.Array]:
    """`attend` of some queries, scaled already: (B, G, R, T, K) and the weights (B, H, T, S)."""
    B, G, R, T, K = q_BGRTK.shape
    S = k_BGSK.shape[2]
    # Queries that share a key head are rows of one product.
    scores = jnp.einsum(
        "bgnk,bgsk->bgns",
        q_BGRTK.reshape(B, G, -1, K),
        k_BGSK,
        preferred_element_type=jnp.float32,
    ).reshape(B, G * R, T, S)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        # A sum: its backward pass, unlike that of a choice, has nothing to do.
        scores = scores + jnp.where(mask, 0.0, -1e30)
    mass = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    total = mass.sum(axis=-1, keepdims=True)
    if dropout is not None:
        mass = dropout(mass)
    # Divided after the product, where there are K numbers to a row and not S.
    out = jnp.einsum(
        "bgns,bgsk->bgnk",
        mass.reshape(B, G, -1, S).astype(v_BGSK.dtype),
        v_BGSK,
        preferred_element_type=jnp.float32,
    )
    out_BGRTK = out.reshape(B, G, R, T, K) / total.reshape(B, G, R, T, 1)
    return out_BGRTK.astype(v_BGSK.dtype), (mass / total).astype(v_BGSK.dtype)


def kv_heads_here(heads: int, kv_heads: int) -> int:
    """How many key and value heads the query heads of this shard look at."""
    if split_axis("heads") is None:
        return kv_heads
    shards = axis_size("tensor")
    if split_axis("kv_heads", kv_heads) is not None:
        return kv_heads // shards
    return 1 if shards % kv_heads == 0 else heads // shards


def _own_kv_heads(x_BSGK: jax.Array, heads: int) -> jax.Array:
    """Of all key or value heads, which every shard has computed, those that its queries look at.

    One for all of them where that is so, else one for each.
    """
    kv_heads = x_BSGK.shape[2]
    own, local = kv_heads_here(heads, kv_heads), heads // axis_size("tensor")
    first = axis_index("tensor") * local
    queries = first + jnp.arange(local) if own == local else first + jnp.zeros((1,), jnp.int32)
    return jnp.take(x_BSGK, queries * kv_heads // heads, axis=2)


def _heads_of(x_BTD: jax.Array, *weights: tuple[Weight, Weight | None]) -> list[jax.Array]:
    """x times several kernels (D, heads, K), plus their biases, as one product."""
    parts = einsum_parts("btd,dhk->bthk", x_BTD, [kernel for kernel, _ in weights], 1)
    pairs = zip(parts, weights, strict=True)
    return [y if bias is None else y + bias.beside(y) for y, (_, bias) in pairs]


class Attention(Layer):
    """Multi-head attention (Vaswani et al. 2017), grouped-query (Ainslie et al. 2023).

    heads, kv_heads: kv_heads divides heads; equal for multi-head, 1 for multi-query.
    alibi: linear position biases (Press et al. 2021).
    """

    heads: int
    kv_heads: int
    head_dim: int
    bias: bool = False
    alibi: bool = False
    dropout: float = 0.0
    train: bool = False
    kernel_init: Initializer = initializers.lecun_normal(0, (1, 2))
    out_init: Initializer = initializers.lecun_normal((0, 1), 2)

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        positions_BT: jax.Array,
        pattern: Pattern = ALL,
        segments_BT: jax.Array | None = None,
        rotary: Table | None = None,
        memory_BSD: jax.Array | None = None,
        memory_segments_BS: jax.Array | None = None,
        cache: Cache | None = None,
        layer: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Attend within x, or from x to `memory_BSD` (cross attention).

        positions_BT: of all the positions of the block (not of a sequence shard).
        pattern: by the order of the columns; with a cache, by the positions.
        segments_BT: documents; a query sees its own only. With a memory, those of its keys are
          `memory_segments_BS` (both or none).
        rotary: see `Rotary.table`.
        cache, layer: new keys and values are stored, and attention is over the whole store.
        Returns (B, T, D) and the cache. Sows "attention", the weights, but not where `context`
        splits the positions: there no shard has them all.
        Raises ValueError where `context` splits the positions of the memory but not those of x, and
        where Ulysses has heads that it does not divide.
        """
        width = x_BTD.shape[-1]
        x_BTD = enter(x_BTD, "heads")
        source_BSD = x_BTD if memory_BSD is None else memory_BSD
        q, k, v = self._project(x_BTD, source_BSD)
        if split_axis("heads") and split_axis("kv_heads", self.kv_heads) is None:
            k, v = _own_kv_heads(k, self.heads), _own_kv_heads(v, self.heads)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        q, k, v = (checkpoint_name(*x) for x in ((q, "query"), (k, "key"), (v, "value")))
        if cache is not None:
            assert layer is not None
            cache = cache.write(layer, positions_BT, k, v)
        if memory_BSD is None:
            memory_segments_BS = segments_BT
        segments = (segments_BT, memory_segments_BS)
        if cache is None and "context" in varying(source_BSD):
            out = self._over_context(x_BTD, q, k, v, positions_BT, pattern, segments)
        else:
            if cache is None:
                k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
            else:
                k, v = cache.key[layer], cache.value[layer]
            out = self._local(q, k, v, positions_BT, pattern, segments, cache)
        out = checkpoint_name(out, "attention")
        out_kernel = self.weight(
            "out_kernel",
            (self.heads, self.head_dim, width),
            ("heads", "head_dim", "embed"),
            self.out_init,
        )
        y_BTD = einsum("bthk,hkd->btd", out, out_kernel, scatter="t")
        if self.bias:
            out_bias = self.weight("out_bias", (width,), (None,), initializers.zeros)
            y_BTD = y_BTD + out_bias.beside(y_BTD)
        return y_BTD, cache

    def _project(
        self, x_BTD: jax.Array, memory_BSD: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries (B, T, H, K), keys and values (B, S, G, K)."""

        def weights(
            name: str, source: jax.Array, heads: int, axis: str
        ) -> tuple[Weight, Weight | None]:
            shape, names = (source.shape[-1], heads, self.head_dim), ("embed", axis, "head_dim")
            kernel = self.weight(f"{name}_kernel", shape, names, self.kernel_init)
            if not self.bias:
                return kernel, None
            return kernel, self.weight(f"{name}_bias", shape[1:], names[1:], initializers.zeros)

        query = weights("query", x_BTD, self.heads, "heads")
        key = weights("key", memory_BSD, self.kv_heads, "kv_heads")
        value = weights("value", memory_BSD, self.kv_heads, "kv_heads")
        if memory_BSD is x_BTD:
            q, k, v = _heads_of(x_BTD, query, key, value)
            return q, k, v
        k, v = _heads_of(memory_BSD, key, value)
        return _heads_of(x_BTD, query)[0], k, v

    def _local(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        positions_BT: jax.Array,
        pattern: Pattern,
        segments: Segments,
        cache: Cache | None,
    ) -> jax.Array:
        """Attention where all keys are here, k and v (B, G, S, K)."""
        stored_1S = jnp.arange(k.shape[2])[None]
        # Within one row, order is that of the columns, whatever the positions say.
        mask = attention_mask(
            positions_BT if cache is not None else jnp.arange(q.shape[1])[None],
            stored_1S,
            causal=pattern.causal,
            window=pattern.window,
            query_segments=segments[0] if cache is None else None,
            key_segments=segments[1] if cache is None else None,
        )
        bias = self._alibi(positions_BT, k.shape[2], cache) if self.alibi else None
        drop = self._drop() if self.train and self.dropout else None
        out, weights = attend(q, k, v, mask, bias, drop, pattern.causal and cache is None)
        self.sow("intermediates", "attention", weights)
        return out

    def _over_context(
        self,
        x_BTD: jax.Array,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        positions_BT: jax.Array,
        pattern: Pattern,
        segments: Segments,
    ) -> jax.Array:
        """Attention where `context` splits the keys, k and v (B, S, G, K)."""
        if "context" not in varying(x_BTD):
            raise ValueError(
                "cross attention: mesh.context splits the positions of the memory but not those "
                "of the queries; gather the memory, or split both"
            )
        places = positions_BT if self.alibi else None
        queries = Rows(columns(q.shape[1]), segments[0], places)
        keys = queries
        if segments[1] is not segments[0] or k.shape[1] != q.shape[1]:
            keys = Rows(columns(k.shape[1]), segments[1], places)
        options: dict[str, Any] = {}
        if self.alibi:
            options["slopes_H"] = self._slopes()
        if self.train and self.dropout:
            B, _, H, _ = q.shape
            axis = split_axis("heads") or ()
            first = jnp.asarray(axis_index(axis) * H, jnp.uint32)
            heads_H = first + jnp.arange(H, dtype=jnp.uint32)
            numbers = rows_here(B, BATCH_AXES)[:, None] * jnp.uint32(self.heads) + heads_H[None]
            options["noise"] = Noise(jax.random.key_data(self._drop().key()), numbers)
            options["rate"] = self.dropout
        if current_rules().attention == "ulysses":
            return ulysses_attention(q, k, v, pattern, queries, keys, **options)
        return block_attention(q, k, v, pattern, queries, keys, ring=True, **options)

    def _drop(self) -> Dropout:
        names = ("batch", "heads", "sequence", None)
        return Dropout(self.dropout, names, self.train)

    def _slopes(self) -> jax.Array:
        """Of the linear biases of this shard's heads, (H,)."""
        return local_slice(jnp.asarray(alibi_slopes(self.heads)), split_axis("heads") or (), 0)

    def _alibi(self, positions_BT: jax.Array, keys: int, cache: Cache | None) -> jax.Array:
        """-slope * distance for this shard's heads, (B, H, T, S)."""
        slopes = self._slopes()
        key_positions = positions_BT if cache is None else jnp.arange(keys)[None]
        distance = positions_BT[:, :, None] - key_positions[:, None, :]
        return -slopes[None, :, None, None] * jnp.abs(distance)[:, None].astype(jnp.float32)
