"""Dot-product attention: multi-head, grouped-query, causal, windowed, cross, packed, cached.

Legend: B batch, T query positions, S key positions, D residual width, H query heads, G key and
value heads, R = H / G queries per key head, K head width, L layers.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from nn import initializers
from nn.layers.cache import Cache
from nn.layers.dot_product import attend
from nn.layers.dropout import Dropout
from nn.layers.norm import HeadNorm
from nn.layers.position import Relative, alibi_slopes, rotate
from nn.parallel import BATCH_AXES, Layer, axis_index, axis_size, einsum, enter, split_axis
from nn.parallel.collectives import local_slice, varying
from nn.parallel.mesh import current_rules
from nn.parallel.pattern import Pattern as Pattern
from nn.parallel.pattern import attention_mask as attention_mask
from nn.parallel.random import rows_here
from nn.parallel.ring import Noise, Rows, block_attention
from nn.parallel.sequence import columns, gathered
from nn.parallel.tensor import einsum_parts
from nn.parallel.ulysses import ulysses_attention
from nn.parallel.weight import Initializer, Weight

Table = tuple[jax.Array, jax.Array]  # cos and sin of the rotary embedding
Segments = tuple[jax.Array | None, jax.Array | None]  # of queries (B, T) and of keys (B, S)
ALL = Pattern()


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


QK_NORMS = dict.fromkeys(("none", "head", "row"))


class Attention(Layer):
    """Multi-head attention (Vaswani et al. 2017), grouped-query (Ainslie et al. 2023).

    heads, kv_heads: kv_heads divides heads; equal for multi-head, 1 for multi-query.
    bias: of all projections but those in `unbiased` ("query", "key", "value", "out").
    cross: keys and values are those of a memory.
    scale: of the scores; 0: 1 / sqrt(head_dim). soft_cap: see `nn.layers.dot_product.capped`.
    qk_norm: RMS norm of queries and keys, of each head ("head": Henry et al. 2020, Qwen 3) or of
      all heads together ("row": OLMo 2), with a learned scale, or 1 + it (`norm_offset` 1).
    interleaved: the rotary embedding turns features 2i and 2i + 1, not i and i + K/2.
    alibi: linear position biases (Press et al. 2021).
    """

    heads: int
    kv_heads: int
    head_dim: int
    bias: bool = False
    unbiased: tuple[str, ...] = ()
    cross: bool = False
    scale: float = 0.0
    soft_cap: float = 0.0
    qk_norm: str = "none"
    norm_eps: float = 1e-6
    norm_offset: float = 0.0
    interleaved: bool = False
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
        relative: Relative | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Attend within x, or, with `cross`, from x to `memory_BSD`.

        positions_BT: of all the positions of the block (not of a sequence shard).
        pattern: by the order of the columns; with a cache, by the positions.
        segments_BT: documents; a query sees its own only. With a memory, those of its keys are
          `memory_segments_BS` (both or none).
        rotary: see `Rotary.table`. relative: biases by distance.
        cache, layer: new keys and values are stored, and attention is over the whole store. Keys
          and values of a memory are stored when it is given, and recalled when it is not.
        Returns (B, T, D) and the cache. Sows "attention", the weights, but not under ring attention
        and Ulysses, where no shard has them all.
        Raises ValueError where Ulysses has heads that it does not divide, and for a memory without
        `cross`.
        """
        if memory_BSD is not None and not self.cross:
            raise ValueError("a memory is for attention with cross=True")
        width = x_BTD.shape[-1]
        x_BTD = enter(x_BTD, "heads")
        q, k, v = self._project(x_BTD, memory_BSD if self.cross else x_BTD)
        q, k = self._normed(q, "query", self.heads), self._normed(k, "key", self.kv_heads)
        if k is not None and split_axis("heads") and split_axis("kv_heads", self.kv_heads) is None:
            k, v = (_own_kv_heads(x, self.heads) for x in (k, v))
        if rotary is not None:
            q, k = (rotate(x, rotary, self.interleaved) for x in (q, k))
        q = checkpoint_name(q, "query")
        if k is None:
            assert cache is not None and layer is not None, "a memory, or a cache that holds one"
            k, v = cache.recall(layer)
            place = (positions_BT, jnp.arange(k.shape[2])[None])
            out = self._local(q, k, v, place, pattern, (segments_BT, memory_segments_BS), relative)
        else:
            k, v = checkpoint_name(k, "key"), checkpoint_name(v, "value")
            own = memory_segments_BS if self.cross else segments_BT
            given = (q, k, v, positions_BT, pattern, (segments_BT, own), relative)
            out, cache = self._attend(*given, cache, layer)
        out = checkpoint_name(out, "attention")
        shape = (self.heads, self.head_dim, width)
        out_kernel = self.weight("out_kernel", shape, ("heads", "head_dim", "embed"), self.out_init)
        y_BTD = einsum("bthk,hkd->btd", out, out_kernel, scatter="t")
        if self.bias and "out" not in self.unbiased:
            out_bias = self.weight("out_bias", (width,), (None,), initializers.zeros)
            y_BTD = y_BTD + out_bias.beside(y_BTD)
        return y_BTD, cache

    def _attend(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        positions_BT: jax.Array,
        pattern: Pattern,
        segments: Segments,
        relative: Relative | None,
        cache: Cache | None,
        layer: jax.Array | None,
    ) -> tuple[jax.Array, Cache | None]:
        """Attention with new keys and values, k and v (B, S, G, K), and the cache with them."""
        if cache is None and "context" in varying(k):
            return self._over_context(q, k, v, positions_BT, pattern, segments, relative), None
        # Within one row, order is that of the columns, whatever the positions say.
        places = (jnp.arange(q.shape[1])[None], jnp.arange(k.shape[1])[None])
        stored = False
        if cache is not None:
            assert layer is not None
            if self.cross:
                cache = cache.remember(layer, k, v)
            else:
                cache = cache.write(layer, positions_BT, k, v, segments[0])
                stored = cache.covers(q.shape[1])
        if stored:
            assert cache is not None
            k, v = cache.key[layer], cache.value[layer]
            places = (positions_BT, cache.positions(positions_BT, segments[0]))
            segments = (None, None)
        else:
            k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
        return self._local(q, k, v, places, pattern, segments, relative, not stored), cache

    def _project(
        self, x_BTD: jax.Array, memory_BSD: jax.Array | None
    ) -> tuple[jax.Array, Any, Any]:
        """Queries (B, T, H, K), keys and values (B, S, G, K), None without a memory."""

        def weights(
            name: str, source: jax.Array, heads: int, axis: str
        ) -> tuple[Weight, Weight | None]:
            shape, names = (source.shape[-1], heads, self.head_dim), ("embed", axis, "head_dim")
            kernel = self.weight(f"{name}_kernel", shape, names, self.kernel_init)
            if not self.bias or name in self.unbiased:
                return kernel, None
            return kernel, self.weight(f"{name}_bias", shape[1:], names[1:], initializers.zeros)

        query = weights("query", x_BTD, self.heads, "heads")
        if memory_BSD is None:
            return _heads_of(x_BTD, query)[0], None, None
        key = weights("key", memory_BSD, self.kv_heads, "kv_heads")
        value = weights("value", memory_BSD, self.kv_heads, "kv_heads")
        if memory_BSD is x_BTD:
            q, k, v = _heads_of(x_BTD, query, key, value)
            return q, k, v
        k, v = _heads_of(memory_BSD, key, value)
        return _heads_of(x_BTD, query)[0], k, v

    def _normed(self, x_BTHK: Any, name: str, heads: int) -> Any:
        """Queries or keys after their norm, if they have one."""
        if self.qk_norm == "none" or x_BTHK is None:
            return x_BTHK
        split = "heads" if name == "query" else "kv_heads"
        row = self.qk_norm == "row"
        norm = HeadNorm(heads, self.norm_eps, self.norm_offset, row, split, name=f"{name}_norm")
        return norm(x_BTHK)

    def _local(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        places: tuple[jax.Array, jax.Array],
        pattern: Pattern,
        segments: Segments,
        relative: Relative | None,
        in_order: bool = False,
    ) -> jax.Array:
        """Attention where all keys are here, k and v (B, G, S, K).

        places: of queries and keys, (B or 1, T) and (B or 1, S). in_order: T = S, by column.
        """
        mask = attention_mask(
            *places,
            causal=pattern.causal,
            window=pattern.window,
            query_segments=segments[0],
            key_segments=segments[1],
        )
        bias = None if relative is None else relative.bias(*places)
        if self.alibi:
            distance = jnp.abs(places[0][:, :, None] - places[1][:, None, :])
            bias = -self._slopes()[None, :, None, None] * distance[:, None].astype(jnp.float32)
        drop = self._drop() if self.train and self.dropout else None
        causal = pattern.causal and in_order and q.shape[1] == k.shape[2]
        out, weights = attend(
            q, k, v, mask, bias, drop, causal, scale=self.scale, soft_cap=self.soft_cap
        )
        self.sow("intermediates", "attention", weights)
        return out

    def _over_context(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        positions_BT: jax.Array,
        pattern: Pattern,
        segments: Segments,
        relative: Relative | None,
    ) -> jax.Array:
        """Attention where `context` splits the keys, k and v (B, S, G, K)."""
        split = "context" in varying(q)
        if current_rules().attention == "gather" or relative is not None or not split:
            k, v = (gathered(x, 1).swapaxes(1, 2) for x in (k, v))
            theirs = None if segments[1] is None else gathered(segments[1], 1)
            here = columns(q.shape[1]) if split else jnp.arange(q.shape[1])
            order = (here[None], jnp.arange(k.shape[2])[None])
            return self._local(q, k, v, order, pattern, (segments[0], theirs), relative)
        places = positions_BT if self.alibi else None
        queries = Rows(columns(q.shape[1]), segments[0], places)
        keys = queries
        if segments[1] is not segments[0] or k.shape[1] != q.shape[1]:
            keys = Rows(columns(k.shape[1]), segments[1], places)
        options: dict[str, Any] = {"scale": self.scale, "soft_cap": self.soft_cap}
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
