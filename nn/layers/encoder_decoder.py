"""What encoder-decoder transformers are made of: two stacks, of which one looks at the other.

Vaswani et al. 2017, section 3.1.

Legend: B batch, S positions of the encoder, T of the decoder (or of either), D residual width, V
vocabulary (v: this shard's part), N buckets of distances, H heads.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from nn import initializers
from nn.layers import block, embed, norm
from nn.layers.block import Seen
from nn.layers.cache import Cache
from nn.layers.dropout import Dropout
from nn.layers.position import Relative, sinusoids
from nn.layers.stack import Aux, run
from nn.layers.token_head import TokenModel
from nn.parallel import BATCH_AXES, Layer, leave, psum, split_axis, vary
from nn.parallel.pipeline import PIPE, between_stages, share
from nn.parallel.sequence import numbered
from nn.parallel.tensor import sequence_axes

TOKENS = ("batch", "tokens", None)  # dimensions of the residual stream, for dropout
POSITIONS = dict.fromkeys(("sinusoidal", "learned", "relative", "none"))


@dataclasses.dataclass(frozen=True)
class Around:
    """What stands before and after a stack."""

    position: str = "none"  # sinusoidal | learned | relative | none
    rows: int = 0  # of the learned table
    offset: int = 0  # of them before that of position 0
    buckets: int = 32  # distances that relative positions tell apart
    distance: int = 128  # positions, from which on all distances are one bucket
    embed_norm: bool = False  # before the stack
    final_norm: bool = True  # after it
    output_dropout: float = 0.0  # of the final states


class Side(Layer):
    """One of the two stacks, with what stands before and after it.

    remat: policy, saved names and layers per iteration of the loop (`nn.layers.block.stack`).
    """

    spec: block.Spec
    around: Around
    remat: tuple[Any, ...]
    dtype: Any = jnp.float32
    train: bool = False

    def setup(self) -> None:
        a, s = self.around, self.spec
        init = initializers.normal(s.init_std)
        if a.position == "learned":
            self.positions = embed.PositionTable(a.rows, s.dim, init)
        if a.position == "relative":  # of all layers
            self.relative = self.weight("relative", (a.buckets, s.heads), (None, "heads"), init)
        if a.embed_norm:
            self.embed_norm = norm.make(s.norm, s.norm_eps, True, "embed_norm")
        self.dropout = Dropout(s.dropout, TOKENS, self.train)
        self.blocks = block.stack(s, self.train, *self.remat)
        if a.final_norm:
            self.final_norm = norm.make(s.norm, s.norm_eps, True, "final_norm")
        self.output_dropout = Dropout(a.output_dropout, TOKENS, self.train)

    def __call__(
        self,
        x_BTD: jax.Array,
        positions_BT: jax.Array,
        axes: tuple[str, ...],
        *seen: jax.Array | None,
        cache: Cache | None = None,
    ) -> tuple[jax.Array, Cache | None, Aux]:
        """From vectors to the output of the last block; `after` gives the final states.

        axes: of the mesh, which split the positions between blocks.
        seen: segments (B, T), and what the decoder looks at, memory and its segments.
        """
        a = self.around
        if a.position == "learned":
            x_BTD = x_BTD + self.positions(positions_BT + a.offset, self.dtype)
        elif a.position == "sinusoidal":
            x_BTD = x_BTD + sinusoids(leave(positions_BT), self.spec.dim).astype(self.dtype)
        if a.embed_norm:
            x_BTD = self.embed_norm(x_BTD)
        x_BTD = self.dropout(vary(x_BTD, (*BATCH_AXES, *axes)))
        table_NH = None
        if a.position == "relative":  # typed as the scores are, for one sum of its gradient
            like = between_stages(positions_BT.astype(jnp.float32))
            table_NH = self.relative.whole(like=vary(like, BATCH_AXES))

        def derive(context: tuple[jax.Array | None, ...]) -> tuple[Seen]:
            positions_BT, segments_BT, memory_BSD, memory_segments_BS = context
            assert positions_BT is not None
            relative = None
            if table_NH is not None:
                relative = Relative(table_NH, a.distance, not self.spec.causal)
            found = Seen(positions_BT, segments_BT, (), memory_BSD, memory_segments_BS, relative)
            return (found,)

        context = (positions_BT, *seen)
        (x_BTD, cache), aux = run(self.blocks, self.spec.layers, (x_BTD, cache), context, derive)
        return x_BTD, cache, aux

    def after(self, x_BTD: jax.Array, shared: bool) -> jax.Array:
        """The final states from the output of the last block, which a pipeline has on its last
        stage and which is zero on the others: shared out among the stages, or on all of them."""
        a, keep_BTD = self.around, None
        if self.train and a.output_dropout:
            # Made of all rows, as noise is that of a row of the batch, and then shared out too.
            keep_BTD = self.output_dropout(jnp.ones(x_BTD.shape, x_BTD.dtype))
            keep_BTD = share(keep_BTD, states=False) if shared else keep_BTD
        x_BTD = share(x_BTD, states=True) if shared else psum(x_BTD, PIPE)
        if a.final_norm:
            x_BTD = self.final_norm(x_BTD)
        return x_BTD if keep_BTD is None else x_BTD * keep_BTD


class EncoderDecoder(TokenModel):
    """A base of models with two sides, `encoder` and `decoder`; a model adds `encode`, from its
    inputs and their segments to what the decoder looks at."""

    def vectors(self, tokens_BT: jax.Array) -> jax.Array:
        """The table's row of each token."""
        return self.embed(between_stages(tokens_BT))

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
          tokens_BT: what the decoder has written so far, behind what starts it.
          positions_BT: of each token in its text; 0, 1, ... by default.
          segments_BT: text of each token, 0 for padding; a token sees its own only.
          cache: keys and values so far; it is written at `positions_BT`, and with those of the
            memory where one is given, which then need not be given again.
          memory: what `encode` made of the inputs, (B, S, D).
          memory_segments: of its positions, (B, S): a token looks at those of its own segment, or,
            without `segments_BT`, at those of segment 1.
        """
        cached = cache is not None
        if positions_BT is None:
            positions_BT = numbered(tokens_BT, whole=cached)
        if memory is not None:
            # Typed as what is made of it, so that its gradient is summed once, not in every layer.
            heads = split_axis("heads", self.decoder.spec.heads)
            memory = vary(between_stages(memory), [heads] if heads else [])
        x_BTD, cache, aux = self.decoder(
            self.vectors(tokens_BT),
            positions_BT,
            () if cached else sequence_axes(),
            segments_BT,
            memory,
            memory_segments,
            cache=cache,
        )
        states_BTD = self.decoder.after(x_BTD, shared=True)
        return embed.head_input(states_BTD, self.config.vocab_size), cache, aux

    def __call__(
        self,
        inputs: jax.Array,
        targets_BT: jax.Array,
        segments_BS: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
    ) -> jax.Array:
        """Logits (B, T, v) of what follows each of `targets_BT`, which start with a token that is
        no target. Sows "attention" and "residual" per layer."""
        memory_BSD: jax.Array = self.encode(inputs, segments_BS)
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
        spec: block.Spec = self.config.decoder
        return spec.cache(batch, length, self.dtype, memory_length, ahead)
