"""The encoder-decoder transformer: one stack reads, the other writes and looks at what was read.

Vaswani et al. 2017; Junczys-Dowmunt et al. 2018 (Marian); Lewis et al. 2020 (BART); Raffel et al.
2020 (T5), Shazeer 2020 (its gated variants).

Legend: B batch, S positions of the encoder, T of the decoder (or of either), D residual width, V
vocabulary (v: this shard's part), N buckets of distances, H heads.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from nn import initializers
from nn.families.seq2seq_transformer.config import Config
from nn.layers import block, embed, norm
from nn.layers.block import Seen
from nn.layers.cache import Cache
from nn.layers.dropout import Dropout
from nn.layers.position import Relative, sinusoids
from nn.layers.stack import Aux, run
from nn.parallel import BATCH_AXES, Layer, enter, leave, psum, split_axis, vary
from nn.parallel.collectives import varying
from nn.parallel.pipeline import PIPE, between_stages, share
from nn.parallel.sequence import columns
from nn.parallel.tensor import sequence_axes
from nn.parallel.weight import Weight

TOKENS = ("batch", "tokens", None)  # dimensions of the residual stream, for dropout


class Side(Layer):
    """One of the two stacks, with what stands before and after it."""

    config: Config
    spec: block.Spec
    dtype: Any = jnp.float32
    train: bool = False

    def setup(self) -> None:
        c, s = self.config, self.spec
        init = initializers.normal(c.init_std)
        if c.position == "learned":
            rows = c.context_length + c.position_offset
            self.positions = embed.PositionTable(rows, c.dim, init)
        if c.position == "relative":  # of all layers
            shape = (c.relative_buckets, s.heads)
            self.relative = self.weight("relative", shape, (None, "heads"), init)
        if c.embed_norm:
            self.embed_norm = norm.make(c.norm, c.norm_eps, True, "embed_norm")
        self.dropout = Dropout(c.dropout, TOKENS, self.train)
        remat = (c.remat, c.remat_names, c.scan_unroll)
        self.blocks = block.stack(s, self.train, *remat)
        if c.final_norm:
            self.final_norm = norm.make(c.norm, c.norm_eps, True, "final_norm")
        self.output_dropout = Dropout(c.output_dropout, TOKENS, self.train)

    def __call__(
        self,
        x_BTD: jax.Array,
        positions_BT: jax.Array,
        axes: tuple[str, ...],
        *seen: jax.Array | None,
        cache: Cache | None = None,
    ) -> tuple[jax.Array, Cache | None, Aux]:
        """From token vectors to the output of the last block; `after` gives the final states.

        axes: of the mesh, which split the positions between blocks.
        seen: segments (B, T), and what the decoder looks at, memory and its segments.
        """
        c = self.config
        if c.position == "learned":
            x_BTD = x_BTD + self.positions(positions_BT + c.position_offset, self.dtype)
        elif c.position == "sinusoidal":
            x_BTD = x_BTD + sinusoids(leave(positions_BT), c.dim).astype(self.dtype)
        if c.embed_norm:
            x_BTD = self.embed_norm(x_BTD)
        x_BTD = self.dropout(vary(x_BTD, (*BATCH_AXES, *axes)))
        table_NH = None
        if c.position == "relative":  # typed as the scores are, for one sum of its gradient
            like = between_stages(positions_BT.astype(jnp.float32))
            table_NH = self.relative.whole(like=vary(like, BATCH_AXES))

        def derive(context: tuple[jax.Array | None, ...]) -> tuple[Seen]:
            positions_BT, segments_BT, memory_BSD, memory_segments_BS = context
            assert positions_BT is not None
            relative = None
            if table_NH is not None:
                relative = Relative(table_NH, c.relative_distance, not self.spec.causal)
            found = Seen(positions_BT, segments_BT, (), memory_BSD, memory_segments_BS, relative)
            return (found,)

        context = (positions_BT, *seen)
        (x_BTD, cache), aux = run(self.blocks, self.spec.layers, (x_BTD, cache), context, derive)
        return x_BTD, cache, aux

    def after(self, x_BTD: jax.Array, shared: bool) -> jax.Array:
        """The final states from the output of the last block, which a pipeline has on its last
        stage and which is zero on the others: shared out among the stages, or on all of them."""
        c, keep_BTD = self.config, None
        if self.train and c.output_dropout:
            # Made of all rows, as noise is that of a row of the batch, and then shared out too.
            keep_BTD = self.output_dropout(jnp.ones(x_BTD.shape, x_BTD.dtype))
            keep_BTD = share(keep_BTD, states=False) if shared else keep_BTD
        x_BTD = share(x_BTD, states=True) if shared else psum(x_BTD, PIPE)
        if c.final_norm:
            x_BTD = self.final_norm(x_BTD)
        return x_BTD if keep_BTD is None else x_BTD * keep_BTD


class Model(Layer):
    """Two rows of tokens to logits. `encode`, `hidden` and `head` are its parts, for losses over
    chunks and for generation."""

    config: Config
    dtype: Any = jnp.float32  # compute dtype
    train: bool = False  # dropout on

    def setup(self) -> None:
        c = self.config
        table_init = initializers.normal(c.embed_std or c.init_std)
        self.embed = embed.Embed(c.vocab_size, c.dim, self.dtype, table_init)
        self.encoder = Side(c, c.encoder, self.dtype, self.train)
        self.decoder = Side(c, c.decoder, self.dtype, self.train)
        if not c.tie_embeddings:
            init = initializers.normal(c.init_std)
            self.output = embed.Head(c.vocab_size, c.dim, init)
        if c.head_bias:
            zeros = initializers.zeros
            self.head_offset = self.weight("head_bias", (c.vocab_size,), ("vocab",), zeros)

    def encode(
        self,
        inputs_BS: jax.Array,
        segments_BS: jax.Array | None = None,
        positions_BS: jax.Array | None = None,
    ) -> jax.Array:
        """What the decoder looks at, (B, S, D): all positions of this shard of `context`, on all
        stages of `pipe`.

        Args:
          segments_BS: document of each token, 0 for padding; a token sees its own document only.
          positions_BS: position of each token in its document; 0, 1, ... by default.
        """
        split = "context" in varying(inputs_BS)  # else every shard holds all positions
        if positions_BS is None:
            number = columns if split else jnp.arange
            positions_BS = number(inputs_BS.shape[1])[None] + jnp.zeros_like(inputs_BS)
        axes = tuple(axis for axis in sequence_axes() if split or axis != "context")
        x_BSD = self._embedded(inputs_BS)
        x_BSD, _, _ = self.encoder(x_BSD, positions_BS, axes, segments_BS, None, None)
        return enter(self.encoder.after(x_BSD, shared=False), "heads")

    def hidden(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
        cache: Cache | None = None,
        memory: jax.Array | None = None,
        memory_segments: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None, Aux]:
        """Final states of the decoder, the cache, and what the blocks add to the loss.

        States are (B, T, D), with the positions that `nn.families.transformer.Model.hidden` tells.

        Args:
          tokens_BT: what the decoder has written so far, behind a token that starts it.
          positions_BT, segments_BT: as in `encode`.
          cache: keys and values so far; it is written at `positions_BT`, and with those of the
            memory where one is given, which then need not be given again.
          memory: what `encode` made of the inputs, (B, S, D).
          memory_segments: of the inputs, (B, S): a token looks at those of its own segment, or,
            without `segments_BT`, at those of segment 1.
        """
        cached = cache is not None
        if positions_BT is None:
            number = jnp.arange if cached else columns
            positions_BT = number(tokens_BT.shape[1])[None] + jnp.zeros_like(tokens_BT)
        if memory is not None:
            # Typed as what is made of it, so that its gradient is summed once, not in every layer.
            heads = split_axis("heads", self.config.decoder.heads)
            memory = vary(between_stages(memory), [heads] if heads else [])
        x_BTD, cache, aux = self.decoder(
            self._embedded(tokens_BT),
            positions_BT,
            () if cached else sequence_axes(),
            segments_BT,
            memory,
            memory_segments,
            cache=cache,
        )
        states_BTD = self.decoder.after(x_BTD, shared=True)
        return embed.head_input(states_BTD, self.config.vocab_size), cache, aux

    def _embedded(self, tokens_BT: jax.Array) -> jax.Array:
        x_BTD = self.embed(between_stages(tokens_BT))
        return x_BTD * jnp.asarray(self.config.embed_scale, x_BTD.dtype)

    def head(self, x_BTD: jax.Array, weight: Weight | None = None) -> jax.Array:
        """Logits of this shard's part of the vocabulary, (B, T, D) -> (B, T, v).

        weight: `head_weight`, for a loop over pieces of x.
        """
        c = self.config
        if c.scale_head:
            x_BTD = x_BTD * jnp.asarray(c.dim**-0.5, x_BTD.dtype)
        logits_BTv = (self.embed.attend if c.tie_embeddings else self.output)(x_BTD, weight)
        return logits_BTv + self.head_offset.beside(logits_BTv) if c.head_bias else logits_BTv

    def head_weight(self, like: jax.Array) -> Weight:
        """The matrix of the head, gathered over fsdp, in the dtype of `like`."""
        held = self.embed.table if self.config.tie_embeddings else self.output.kernel
        return held.gathered(like)

    def head_positions(self, *per_position: jax.Array) -> list[jax.Array]:
        """Of arrays (B, T) with one entry per position, those that go with `hidden`."""
        return [embed.head_positions(x_BT, self.config.vocab_size) for x_BT in per_position]

    def __call__(
        self,
        inputs_BS: jax.Array,
        targets_BT: jax.Array,
        segments_BS: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
    ) -> jax.Array:
        """Logits (B, T, v) of what follows each of `targets_BT`, which start with a token that is
        no target. Sows "attention" and "residual" per layer."""
        memory_BSD = self.encode(inputs_BS, segments_BS)
        hidden_BTD, _, _ = self.hidden(
            targets_BT,
            segments_BT=segments_BT,
            memory=memory_BSD,
            memory_segments=segments_BS,
        )
        return self.head(hidden_BTD)

    def empty_cache(self, batch: int, length: int, memory_length: int = 0, ahead: int = 0) -> Cache:
        """Room for `length` positions of `batch` rows and, with `memory_length`, for the keys and
        values of a memory; this shard's heads only. ahead: see `nn.layers.block.Spec.cache`."""
        return self.config.decoder.cache(batch, length, self.dtype, memory_length, ahead)
