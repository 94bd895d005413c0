"""The decoder-only transformer: GPT, Llama, Gemma and their kin are configs of one block.

Radford et al. 2018, 2019 (GPT, GPT-2); Brown et al. 2020 (GPT-3); Wang & Komatsuzaki 2021 (GPT-J);
Chowdhery et al. 2022 (PaLM); Touvron et al. 2023, Llama Team 2024; Jiang et al. 2023 (Mistral);
Gemma Team 2024, 2025; OLMo Team 2024; Qwen Team 2025.

Legend: B batch, T positions, D residual width, E width of the tables, V vocabulary (v: this shard's
part), L layers.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from nn import initializers
from nn.families.transformer.config import Config
from nn.layers import block, embed, norm
from nn.layers.block import Seen
from nn.layers.cache import Cache
from nn.layers.dense import Dense
from nn.layers.dot_product import capped
from nn.layers.dropout import Dropout
from nn.layers.position import sinusoids
from nn.layers.stack import Aux, run, staged
from nn.layers.token_head import TokenModel
from nn.parallel import BATCH_AXES, leave, vary
from nn.parallel.pipeline import Stage, between_stages, share
from nn.parallel.sequence import numbered
from nn.parallel.tensor import sequence_axes
from nn.parallel.weight import Weight


class Model(TokenModel):
    """Tokens to logits. `hidden` and `head` are its two halves, for losses over chunks."""

    config: Config
    dtype: Any = jnp.float32  # compute dtype
    train: bool = False  # dropout on

    def setup(self) -> None:
        c = self.config
        init = initializers.normal(c.init_std)
        tied, bias = c.tie_embeddings, c.head_bias
        ends: dict[str, Any] = {"tied": tied, "bias": bias, "factor": c.logit_factor}
        self.make_ends(c.embed_width, self.dtype, init, **ends)
        if c.embed_dim:  # Lan et al. 2020, section 3.1
            self.project_in = Dense(c.dim, (None, "embed"), False, kernel_init=init)
            self.project_out = Dense(c.embed_dim, ("embed", None), False, kernel_init=init)
        if c.position == "learned":
            rows = c.context_length + c.position_offset
            self.positions = embed.PositionTable(rows, c.dim, init)
        self.dropout = Dropout(c.dropout, ("batch", "tokens", None), self.train)
        remat = (c.remat, c.remat_names, c.scan_unroll)
        self.blocks = block.stack(c.block, self.train, *remat)
        if c.final_norm:
            self.final_norm = norm.make(c.norm, c.norm_eps, c.norm_bias, "final_norm")

    def hidden(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
        cache: Cache | None = None,
    ) -> tuple[jax.Array, Cache | None, Aux]:
        """Final normed states, the cache, and what the blocks add to the loss (`nn.layers.stack`).

        States are (B, T, D), all positions of this shard of `context`; where sequence parallelism
        is on and the vocabulary is not split, the positions of this shard of `tensor` only; where
        `pipe` splits the layers, this stage's share of them (`embed.head_positions`).

        Args:
          positions_BT: position of each token in its document; 0, 1, ... by default.
          segments_BT: document of each token; a token sees its own document only.
          cache: keys and values so far; it is written at `positions_BT`.
        """
        x_BTD, positions_BT = self._before(tokens_BT, positions_BT, cached=cache is not None)
        carry, context = (x_BTD, cache), (positions_BT, segments_BT)
        (x_BTD, cache), aux = run(self.blocks, self.config.num_layers, carry, context, self._seen)
        return self.states(x_BTD), cache, aux

    def _before(
        self, tokens_BT: jax.Array, positions_BT: jax.Array | None, cached: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """The input of the first block, and the positions."""
        c = self.config
        if positions_BT is None:
            positions_BT = numbered(tokens_BT, whole=cached)
        tokens_BT = between_stages(tokens_BT)
        x_BTD = self.embed(tokens_BT)
        if c.embed_scale != 1:
            x_BTD = x_BTD * jnp.asarray(c.embed_scale, x_BTD.dtype)
        if c.embed_dim:
            x_BTD = self.project_in(x_BTD)
        if c.position == "learned":
            x_BTD = x_BTD + self.positions(positions_BT + c.position_offset, self.dtype)
        elif c.position == "sinusoidal":
            x_BTD = x_BTD + sinusoids(leave(positions_BT), c.dim).astype(self.dtype)
        # With a cache every shard of `context` holds all positions.
        split = () if cached else sequence_axes()
        return self.dropout(vary(x_BTD, (*BATCH_AXES, *split))), positions_BT

    def states(self, x_BTD: jax.Array) -> jax.Array:
        """The input of `head` from the output of the last block."""
        x_BTD = share(x_BTD, states=True)
        if self.config.final_norm:
            x_BTD = self.final_norm(x_BTD)
        if self.config.embed_dim:
            x_BTD = self.project_out(x_BTD)
        return embed.head_input(x_BTD, self.config.vocab_size)

    def stages(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
    ) -> tuple[Any, Any, Stage]:
        """For `pipeline.one_f_one_b`: carry, weights of this stage, and the stage; see `hidden`."""
        x_BTD, positions_BT = self._before(tokens_BT, positions_BT)
        carry, context = (x_BTD, None), (positions_BT, segments_BT)
        return carry, *staged(self.blocks, self.config.num_layers, carry, context, self._seen)

    def _seen(self, context: tuple[jax.Array, jax.Array | None]) -> tuple[Seen]:
        """What the blocks look at: positions, segments, rotary tables."""
        positions_BT, segments_BT = context
        c = self.config
        if c.position != "rotary":
            return (Seen(positions_BT, segments_BT),)
        tables = tuple(r.table(positions_BT, c.rope_dim or c.head_width) for r in c.rotary)
        return (Seen(positions_BT, segments_BT, tables),)

    def head(self, x_BTD: jax.Array, weight: Weight | None = None) -> jax.Array:
        """See `TokenModel.head`."""
        return capped(super().head(x_BTD, weight), self.config.logit_cap)

    @property
    def head_weights(self) -> tuple[str, ...]:
        """Names of the parameters that `states` and `head` use."""
        c = self.config
        used = {
            "final_norm": c.final_norm,
            "project_out": c.embed_dim > 0,
            "embed": c.tie_embeddings,
            "output": not c.tie_embeddings,
            "head_bias": c.head_bias,
        }
        return tuple(name for name, has in used.items() if has)

    def __call__(self, tokens_BT: jax.Array, **inputs: Any) -> jax.Array:
        """Logits (B, T, v); inputs as in `hidden`. Sows "attention" and "residual" per layer."""
        return self.head(self.hidden(tokens_BT, **inputs)[0])

    def empty_cache(self, batch: int, length: int, ahead: int = 0) -> Cache:
        """Room for `length` positions of `batch` rows, this shard's heads only.

        ahead: most tokens that are given at once after the prompt, so that sliding windows keep no
          more than they need; 0: any number.
        """
        c = self.config
        return c.block.cache(batch, length, self.dtype, ahead=ahead)
