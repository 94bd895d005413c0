"""The two ends of a model of tokens: the table they are looked up in, and the way back to it.

Legend: B batch, T positions, E width of the table, V vocabulary (v: this shard's part).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from nn import initializers
from nn.layers import embed
from nn.parallel import Layer
from nn.parallel.weight import Weight


class TokenModel(Layer):
    """A base of models with a `config.vocab_size`; `make_ends` belongs into their `setup`.

    The head is the table (Press & Wolf 2017), or a matrix "output" of its own, with or without a
    bias "head_bias".
    """

    def make_ends(
        self,
        width: int,
        dtype: Any,
        init: initializers.Initializer,
        *,
        tied: bool,
        bias: bool = False,
        table_init: initializers.Initializer | None = None,
        factor: float = 1.0,
    ) -> None:
        """factor: of the logits without their bias."""
        size = self.config.vocab_size
        self.logit_factor = factor
        self.embed = embed.Embed(size, width, dtype, table_init or init)
        self.output = None if tied else embed.Head(size, width, init)
        self.head_offset = None
        if bias:
            self.head_offset = self.weight("head_bias", (size,), ("vocab",), initializers.zeros)

    def head(self, x_BTE: jax.Array, weight: Weight | None = None) -> jax.Array:
        """Logits of this shard's part of the vocabulary, (B, T, E) -> (B, T, v).

        weight: `head_weight`, for a loop over pieces of x.
        """
        if self.logit_factor != 1:
            x_BTE = x_BTE * jnp.asarray(self.logit_factor, x_BTE.dtype)
        apply = self.embed.attend if self.output is None else self.output
        logits_BTv: jax.Array = apply(x_BTE, weight)
        if self.head_offset is None:
            return logits_BTv
        return logits_BTv + self.head_offset.beside(logits_BTv)

    def head_weight(self, like: jax.Array) -> Weight:
        """The matrix of the head, gathered over fsdp, in the dtype of `like`."""
        held = self.embed.table if self.output is None else self.output.kernel
        return held.gathered(like)

    def head_positions(self, *per_position: jax.Array) -> list[jax.Array]:
        """Of arrays (B, T) with one entry per position, those that go with `hidden`."""
        return [embed.head_positions(x_BT, self.config.vocab_size) for x_BT in per_position]
