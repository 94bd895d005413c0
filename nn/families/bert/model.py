"""The bidirectional encoder: BERT, RoBERTa, DistilBERT, ELECTRA and ModernBERT are configs of it.

Devlin et al. 2018 (BERT); Liu et al. 2019 (RoBERTa); Sanh et al. 2019 (DistilBERT); Clark et al.
2020 (ELECTRA); Warner et al. 2024 (ModernBERT).

Legend: B batch, T positions, D residual width, E width of the tables, V vocabulary (v: this shard's
part), C classes.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from nn import activations, initializers
from nn.families.bert.config import Config
from nn.layers import block, embed
from nn.layers.block import Seen
from nn.layers.dense import Dense
from nn.layers.dropout import Dropout
from nn.layers.norm import LayerNorm
from nn.layers.stack import Aux, run, staged
from nn.layers.token_head import TokenModel
from nn.parallel import BATCH_AXES, axis_size, leave, psum, vary
from nn.parallel.collectives import varying
from nn.parallel.mesh import current_rules
from nn.parallel.pipeline import PIPE, Stage, between_stages, share
from nn.parallel.sequence import columns, gathered, order
from nn.parallel.tensor import sequence_axes, sequence_is_split
from nn.parallel.weight import Weight

SPLIT = ("context", "tensor")  # mesh axes that may split the positions


class Model(TokenModel):
    """Tokens to what the head of the config gives. `hidden` and `head` are its two halves, for
    losses over chunks."""

    config: Config
    dtype: Any = jnp.float32  # compute dtype
    train: bool = False  # dropout on

    def setup(self) -> None:
        c = self.config
        init = initializers.normal(c.init_std)
        ends: dict[str, Any] = {"bias": c.predicts_tokens, "factor": c.logit_factor}
        self.make_ends(c.embed_width, self.dtype, init, tied=True, **ends)
        if c.position == "learned":
            rows = c.context_length + c.position_offset
            self.positions = embed.PositionTable(rows, c.embed_width, init)
        if c.token_types:
            self.types = embed.PositionTable(c.token_types, c.embed_width, init)
        self.embed_norm = self._norm()
        self.dropout = Dropout(c.dropout, ("batch", "tokens", None), self.train)
        if c.embed_dim:
            self.project_in = Dense(c.dim, (None, "embed"), kernel_init=init)
        remat = (c.remat, c.remat_names, c.scan_unroll)
        self.blocks = block.stack(c.block, self.train, *remat)
        if c.norm_order == "pre":
            self.final_norm = self._norm()
        self._make_heads()

    def _make_heads(self) -> None:
        c = self.config
        init = initializers.normal(c.init_std)

        def dense(width: int, bias: bool = True) -> Dense:
            return Dense(width, ("embed", None), bias, kernel_init=init)

        if c.predicts_tokens:
            self.transform = dense(c.embed_width, c.head_bias)
            self.transform_norm = self._norm()
        if c.head == "replaced_token":
            self.transform = dense(c.dim, c.head_bias)
            self.score = dense(1)
        if c.pools:
            self.pooler = dense(c.dim, c.head_bias)
            self.pool_dropout = Dropout(c.dropout, ("batch", None), self.train)
        if c.pools and c.pool_norm:
            self.pooler_norm = self._norm()
        if c.head == "class":
            self.classifier = dense(c.num_classes)
        if c.head == "masked_token_and_next_sentence":
            self.next_sentence = dense(2)

    def _norm(self) -> LayerNorm:
        return LayerNorm(self.config.norm_eps, bias=self.config.norm_bias)

    def hidden(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
        types_BT: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None, Aux]:
        """What `head` works on, logits of the next sentence (B, 2) or None, what blocks add to the
        loss.

        The first is (B, T, E or D), all positions of this shard of `context`; where sequence
        parallelism is on and the vocabulary is not split, the positions of this shard of `tensor`
        only; where `pipe` splits the layers, this stage's share of them (`head_positions`).

        Args:
          positions_BT: position of each token in its document; 0, 1, ... by default.
          segments_BT: document of each token, 0 for padding; a token sees its own document only. By
            default padding is what the config says.
          types_BT: kind of each token, below `token_types`; 0 by default.
        """
        x_BTD, segments_BT, aux = self._encode(tokens_BT, positions_BT, segments_BT, types_BT)
        pair_B2 = None
        if self.config.head == "masked_token_and_next_sentence":
            pair_B2 = self.next_sentence(self._pooled(x_BTD, segments_BT))
        return self.states(x_BTD), pair_B2, aux

    def _encode(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None,
        segments_BT: jax.Array | None,
        types_BT: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array | None, Aux]:
        """The output of the last block, zero on all stages but the last; segments; aux."""
        *context, x_BTD = self._before(tokens_BT, positions_BT, segments_BT, types_BT)
        (x_BTD, _), aux = run(
            self.blocks, self.config.num_layers, (x_BTD, None), tuple(context), self._seen
        )
        return x_BTD, context[1], aux

    def _before(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None,
        segments_BT: jax.Array | None,
        types_BT: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array | None, jax.Array]:
        """Positions, segments, and the input of the first block."""
        c = self.config
        tokens_BT = _own_columns(tokens_BT)
        positions_BT, segments_BT, types_BT = (
            None if x_BT is None else _own_columns(x_BT)
            for x_BT in (positions_BT, segments_BT, types_BT)
        )
        if segments_BT is None and c.pad_token >= 0:
            segments_BT = (tokens_BT != c.pad_token).astype(jnp.int32)
        if positions_BT is None:
            positions_BT = self._default_positions(tokens_BT, segments_BT)
        tokens_BT = between_stages(tokens_BT)
        x_BTE = self.embed(tokens_BT)
        if c.position == "learned":
            x_BTE = x_BTE + self.positions(positions_BT + c.position_offset, self.dtype)
        if c.token_types:
            types_BT = jnp.zeros_like(tokens_BT) if types_BT is None else types_BT
            x_BTE = x_BTE + self.types(types_BT, self.dtype)
        x_BTD = self.dropout(self.embed_norm(vary(x_BTE, (*BATCH_AXES, *sequence_axes()))))
        if c.embed_dim:
            x_BTD = self.project_in(x_BTD)
        return positions_BT, segments_BT, x_BTD

    def _default_positions(self, tokens_BT: jax.Array, segments_BT: jax.Array | None) -> jax.Array:
        here_T = columns(tokens_BT.shape[1])
        if not self.config.skip_padding or segments_BT is None:
            return here_T[None] + jnp.zeros_like(tokens_BT)
        real_BT = (gathered(segments_BT, 1) > 0).astype(jnp.int32)
        return jnp.take(jnp.cumsum(real_BT, axis=1) * real_BT - 1, here_T, axis=1)

    def _seen(self, context: tuple[jax.Array, jax.Array | None]) -> tuple[Seen]:
        """What the blocks look at: positions, segments, rotary tables."""
        positions_BT, segments_BT = context
        c = self.config
        if c.position != "rotary":
            return (Seen(positions_BT, segments_BT),)
        tables = tuple(r.table(positions_BT, c.head_width) for r in c.rotary)
        return (Seen(positions_BT, segments_BT, tables),)

    def stages(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
        types_BT: jax.Array | None = None,
    ) -> tuple[Any, Any, Stage]:
        """For `pipeline.one_f_one_b`: carry, weights of this stage, and the stage; see `hidden`."""
        *context, x_BTD = self._before(tokens_BT, positions_BT, segments_BT, types_BT)
        carry = (x_BTD, None)
        staging = staged(self.blocks, self.config.num_layers, carry, tuple(context), self._seen)
        return carry, *staging

    def states(self, x_BTD: jax.Array) -> jax.Array:
        """The input of `head` from the output of the last block."""
        c = self.config
        x_BTD = share(x_BTD, states=True)
        if c.norm_order == "pre":
            x_BTD = self.final_norm(x_BTD)
        if c.predicts_tokens or c.head == "replaced_token":
            x_BTD = activations.get(c.head_activation)(self.transform(x_BTD))
        if not c.predicts_tokens:
            return x_BTD
        return embed.head_input(self.transform_norm(x_BTD), c.vocab_size)

    def head(self, x_BTE: jax.Array, weight: Weight | None = None) -> jax.Array:
        """Logits of this shard's part of the vocabulary, (B, T, E) -> (B, T, v); of a model that
        looks for replaced tokens, (B, T, D) -> (B, T).

        weight: `head_weight`, for a loop over pieces of x.
        """
        if self.config.head == "replaced_token":
            return self.score(x_BTE)[..., 0]
        return super().head(x_BTE, weight)

    def head_positions(self, *per_position: jax.Array) -> list[jax.Array]:
        """Of arrays (B, T) with one entry per position, those that go with `hidden`."""
        if self.config.predicts_tokens:
            return super().head_positions(*per_position)
        return [share(leave(x_BT), states=False) for x_BT in per_position]

    @property
    def head_weights(self) -> tuple[str, ...]:
        """Names of the parameters that `states` and `head` use."""
        final = ("final_norm",) if self.config.norm_order == "pre" else ()
        return (*final, "transform", "transform_norm", "embed", "head_bias")

    def _pooled(self, x_BTD: jax.Array, segments_BT: jax.Array | None) -> jax.Array:
        """One vector for each row, (B, T, D) -> (B, D), the same on all shards of the row."""
        c = self.config
        x_BTD = psum(x_BTD, PIPE)  # zero on all stages but the last
        if c.norm_order == "pre":
            x_BTD = self.final_norm(x_BTD)
        shards = axis_size("tensor") if sequence_is_split() else 1
        counts_BT = leave(columns(x_BTD.shape[1] * shards)[None]) == 0
        if c.pool == "mean":
            counts_BT = jnp.ones_like(counts_BT) if segments_BT is None else leave(segments_BT) > 0
        wide_BTD = x_BTD.astype(jnp.float32)
        weights_BT = jnp.broadcast_to(counts_BT.astype(jnp.float32), x_BTD.shape[:2])
        weights_BT = vary(weights_BT, varying(x_BTD))
        total_BD = psum(jnp.einsum("bt,btd->bd", weights_BT, wide_BTD), SPLIT)
        x_BD = total_BD / jnp.maximum(psum(weights_BT.sum(axis=1), SPLIT), 1)[:, None]
        x_BD = activations.get(c.pool_activation)(self.pooler(x_BD.astype(self.dtype)))
        return self.pool_dropout(self.pooler_norm(x_BD) if c.pool_norm else x_BD)

    def __call__(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
        types_BT: jax.Array | None = None,
    ) -> Any:
        """What `HEADS` says; inputs as in `hidden`. Sows "attention" and "residual" per layer."""
        head, given = self.config.head, (tokens_BT, positions_BT, segments_BT, types_BT)
        if head in ("pooled", "class"):
            x_BTD, segments_BT, _ = self._encode(*given)
            x_BD = self._pooled(x_BTD, segments_BT)
            return self.classifier(x_BD) if head == "class" else x_BD
        states_BTE, pair_B2, _ = self.hidden(*given)
        if head == "none":
            return states_BTE
        logits = self.head(states_BTE)
        return logits if pair_B2 is None else (logits, pair_B2)


def _own_columns(x_BT: jax.Array) -> jax.Array:
    """This shard's positions of rows that every shard of `context` holds whole."""
    shards = axis_size("context")
    if shards == 1 or "context" in varying(x_BT):
        return x_BT
    order(x_BT.shape[1], shards, current_rules().layout)  # raises where the shards do not divide
    return jnp.take(x_BT, columns(x_BT.shape[1] // shards), axis=1)
