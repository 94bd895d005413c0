"""The encoder-decoder transformer: one stack reads, the other writes and looks at what was read.

Vaswani et al. 2017; Junczys-Dowmunt et al. 2018 (Marian); Lewis et al. 2020 (BART); Raffel et al.
2020 (T5), Shazeer 2020 (its gated variants).

Legend: B batch, S positions of the encoder, T of the decoder, D residual width, V vocabulary (v:
this shard's part).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from nn import initializers
from nn.families.seq2seq_transformer.config import Config
from nn.layers.encoder_decoder import EncoderDecoder, Side
from nn.parallel import enter
from nn.parallel.collectives import varying
from nn.parallel.sequence import numbered
from nn.parallel.tensor import sequence_axes
from nn.parallel.weight import Weight


class Model(EncoderDecoder):
    """Two rows of tokens to logits. `encode`, `hidden` and `head` are its parts, for losses over
    chunks and for generation."""

    config: Config
    dtype: Any = jnp.float32  # compute dtype
    train: bool = False  # dropout on

    def setup(self) -> None:
        c = self.config
        self.make_ends(
            c.dim,
            self.dtype,
            initializers.normal(c.init_std),
            tied=c.tie_embeddings,
            bias=c.head_bias,
            factor=c.logit_factor,
            table_init=initializers.normal(c.embed_std or c.init_std),
        )
        remat = (c.remat, c.remat_names, c.scan_unroll)
        self.encoder = Side(c.encoder, c.around, remat, self.dtype, self.train)
        self.decoder = Side(c.decoder, c.around, remat, self.dtype, self.train)

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
            positions_BS = numbered(inputs_BS, whole=not split)
        axes = tuple(axis for axis in sequence_axes() if split or axis != "context")
        x_BSD = self.vectors(inputs_BS)
        x_BSD, _, _ = self.encoder(x_BSD, positions_BS, axes, segments_BS, None, None)
        return enter(self.encoder.after(x_BSD, shared=False), "heads")

    def vectors(self, tokens_BT: jax.Array) -> jax.Array:
        x_BTD = super().vectors(tokens_BT)
        return x_BTD * jnp.asarray(self.config.embed_scale, x_BTD.dtype)

    def head(self, x_BTD: jax.Array, weight: Weight | None = None) -> jax.Array:
        """See `TokenModel.head`."""
        if self.config.scale_head:
            x_BTD = x_BTD * jnp.asarray(self.config.dim**-0.5, x_BTD.dtype)
        return super().head(x_BTD, weight)
