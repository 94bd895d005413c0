"""The neural language model: the next token from the vectors of the last few, by dense layers.

Bengio, Ducharme, Vincent & Jauvin 2003, "A neural probabilistic language model", equation 1 without
its direct connections: b + U tanh(d + H x), x the vectors of the last tokens side by side. Trained
on whole rows it predicts every token of them at once, as a transformer does, so that it has the
objectives and data of one. The smallest language model that scales: it trains in seconds, and it
costs exactly six operations per token and weight of its matrices.

Legend: B batch, T positions of this shard, S positions of the whole row, N tokens looked at, E
width of the table, H hidden units, V vocabulary (v: this shard's part).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from nn import activations, initializers
from nn.layers import embed
from nn.layers.dense import Dense
from nn.layers.dropout import Dropout
from nn.layers.token_head import TokenModel
from nn.parallel import BATCH_AXES, enter, leave, vary
from nn.parallel.collectives import varying
from nn.parallel.sequence import columns, gathered
from nn.parallel.tensor import sequence_axes


@dataclasses.dataclass(frozen=True)
class Config:
    vocab_size: int = 256  # tokens
    window: int = 12  # tokens that a prediction looks at, the last ones
    embed_dim: int = 16  # width E of the table
    hidden_dim: int = 128  # units H of each hidden layer
    num_layers: int = 1  # hidden layers
    activation: str = "tanh"
    bias: bool = True  # of hidden layers and the head
    dropout: float = 0.0  # probability, after each activation
    embed_std: float = 1.0  # of the table; kernels: of variance 1 / inputs

    def __post_init__(self) -> None:
        for field in ("vocab_size", "window", "embed_dim", "hidden_dim", "num_layers"):
            if getattr(self, field) < 1:
                raise ValueError(f"model.{field}={getattr(self, field)}: must be at least 1")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"model.dropout={self.dropout}: must be in [0, 1)")
        if activations.is_gated(self.activation):
            raise ValueError(f"model.activation={self.activation!r} is gated and needs two inputs")


class Model(TokenModel):
    """Tokens to logits. `hidden` and `head` are its two halves, for losses over chunks."""

    config: Config
    dtype: Any = jnp.float32  # compute dtype
    train: bool = False  # dropout on

    def setup(self) -> None:
        c, init = self.config, initializers.lecun_normal()
        table = initializers.normal(c.embed_std)
        self.embed = embed.Embed(c.vocab_size, c.embed_dim, self.dtype, table)
        self.layers = [self._layer(i) for i in range(c.num_layers)]
        self.dropout = Dropout(c.dropout, ("batch", "tokens", None), self.train)
        self.hidden_dropout = Dropout(c.dropout, ("batch", "sequence", "mlp"), self.train)
        self.output = embed.Head(c.vocab_size, c.hidden_dim, init)
        self.head_offset, self.logit_factor = None, 1.0
        if c.bias:
            self.head_offset = self.weight(
                "head_bias", (c.vocab_size,), ("vocab",), initializers.zeros
            )

    def _layer(self, i: int) -> Dense:
        """Of two layers the first splits its outputs over `tensor`, the second its inputs; one
        that is left over splits neither, and each shard has its positions."""
        c, row = self.config, i % 2 == 1
        last = i == c.num_layers - 1
        return Dense(
            c.hidden_dim,
            ("mlp", "embed") if row else ("embed", None if last else "mlp"),
            c.bias,
            scatter=row,
            in_features=c.hidden_dim if i else c.window * c.embed_dim,
        )

    def hidden(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
        cache: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None, dict[str, jax.Array]]:
        """Units of the last hidden layer, (B, T, H), the cache, and nothing for the loss.

        Where sequence parallelism is on and the vocabulary is not split, the positions of this
        shard of `tensor` only.

        Args:
          positions_BT: where `cache` holds the tokens; places in a window are all else it knows.
          segments_BT: document of each token; a token sees its own document only.
          cache: tokens so far, (1, B, S); a row with one is one document.
        """
        c, split = self.config, sequence_axes()
        if cache is None:
            whole_BS, place_BT = tokens_BT, jnp.arange(tokens_BT.shape[1])[None]
            if "context" in varying(tokens_BT):
                whole_BS, place_BT = gathered(tokens_BT, 1), columns(tokens_BT.shape[1])[None]
        else:
            place_BT = columns(tokens_BT.shape[1])[None] if positions_BT is None else positions_BT
            rows, split = jnp.arange(len(tokens_BT))[:, None], ()
            cache = cache.at[0, rows, place_BT].set(tokens_BT)
            whole_BS, segments_BT = cache[0], None
        x_BTX = vary(self._seen(whole_BS, place_BT, segments_BT), (*BATCH_AXES, *split))
        act = activations.get(c.activation)
        for i, layer in enumerate(self.layers):
            column = i % 2 == 0 and i < c.num_layers - 1
            h_BTH = act(layer(enter(x_BTX, "mlp") if column else x_BTX))
            x_BTX = self.hidden_dropout(h_BTH) if column else self.dropout(h_BTH)
            self.sow("intermediates", f"hidden_{i}", x_BTX)
        return embed.head_input(x_BTX, c.vocab_size), cache, {}

    def _seen(
        self, whole_BS: jax.Array, place_BT: jax.Array, segments_BT: jax.Array | None
    ) -> jax.Array:
        """The vectors of the last N tokens, the latest last, (B, T, N E); 0 where a document, or
        the row, begins later.

        whole_BS: the tokens of whole rows, so that the shards of `context` exchange these and not
          vectors. place_BT: of this shard's tokens in them, (B or 1, T).
        """
        c, B = self.config, len(whole_BS)
        place_BTN = place_BT[..., None] + jnp.arange(1 - c.window, 1)[None, None]
        here_BTN, place_BTN = place_BTN >= 0, jnp.maximum(place_BTN, 0)
        rows = jnp.arange(B)[:, None, None]
        if segments_BT is not None:
            segments_BS = gathered(segments_BT, 1)
            here_BTN = here_BTN & (segments_BS[rows, place_BTN] == segments_BT[..., None])
        here_BTN = leave(jnp.broadcast_to(here_BTN, (B, *here_BTN.shape[1:])))
        # Rows of N T tokens, so that shards of `tensor` that share positions out share these.
        x_BME = self.embed(whole_BS[rows, place_BTN].reshape(B, -1))
        x_BTNE = x_BME.reshape(*here_BTN.shape, c.embed_dim)
        x_BTNE = jnp.where(here_BTN[..., None], x_BTNE, jnp.zeros((), x_BTNE.dtype))
        return x_BTNE.reshape(*here_BTN.shape[:2], -1)

    def empty_cache(self, batch: int, length: int, ahead: int = 0) -> jax.Array:
        """Room for the tokens of `batch` rows of `length` positions, (1, B, S)."""
        return vary(jnp.zeros((1, batch, length), jnp.int32), BATCH_AXES)

    def __call__(self, tokens_BT: jax.Array, **inputs: Any) -> jax.Array:
        """Logits (B, T, v); inputs as in `hidden`. Sows "hidden_i", the units of each layer."""
        return self.head(self.hidden(tokens_BT, **inputs)[0])


PRESETS = {
    # Of the paper's table 1, the model of the Brown corpus without direct connections.
    "brown": Config(vocab_size=16383, window=4, embed_dim=30, hidden_dim=100),
}

OBJECTIVES = ("next_token",)  # those that train it


def tiny() -> Config:
    return Config(vocab_size=64, window=5, embed_dim=8, hidden_dim=32, num_layers=3)


def example(config: Config, batch: int) -> tuple[jax.Array, ...]:
    """Positional inputs of the model: tokens (batch, positions)."""
    rows, columns = jnp.arange(batch)[:, None], jnp.arange(16)[None]
    return ((rows * 7 + columns * 3) % config.vocab_size,)
