"""The decoder-only transformer: GPT-2, Llama 3 and their kin are configs of one block.

Radford et al. 2019 (GPT-2: layer norm before each block, learned positions, biases, tied head);
Touvron et al. 2023, Llama Team 2024 (RMS norm, rotary positions, gated feed-forward, grouped-query
attention, no biases).

Legend: B batch, T positions, D residual width, V vocabulary (v: this shard's part), L layers,
G key and value heads, S cached positions, K head width.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nn import activations, initializers, names
from nn.layers import embed, norm
from nn.layers.attention import Attention, Cache, Pattern, Table, kv_heads_here
from nn.layers.dense import FeedForward
from nn.layers.dropout import Dropout
from nn.layers.moe import MoE, Routing
from nn.layers.position import SCALINGS, Rotary, sinusoids
from nn.layers.stack import Aux, remat_policy, run, stacked, staged
from nn.parallel import BATCH_AXES, Layer, leave, split_axis, vary
from nn.parallel.pipeline import Stage, between_stages, share
from nn.parallel.sequence import columns
from nn.parallel.tensor import sequence_axes
from nn.parallel.weight import Initializer, Weight

POSITIONS = dict.fromkeys(("learned", "sinusoidal", "rotary", "alibi", "none"))


@dataclasses.dataclass(frozen=True)
class Config:
    vocab_size: int = 256  # tokens
    context_length: int = 1024  # positions that the model can tell apart
    dim: int = 256  # residual width D
    num_layers: int = 4
    num_heads: int = 4  # query heads
    num_kv_heads: int = 0  # key and value heads; 0: as many as query heads
    head_dim: int = 0  # width of a head; 0: dim / num_heads
    mlp_dim: int = 0  # hidden units of the feed-forward block; 0: 4 * dim
    activation: str = "gelu_tanh"  # a gated one (swiglu, geglu) adds a third matrix
    norm: str = "layer"  # layer | rms
    norm_eps: float = 1e-5
    position: str = "learned"  # learned | sinusoidal | rotary | alibi | none
    rope_theta: float = 10000.0  # base of the rotary frequencies
    rope_scaling: str = "none"  # none | linear | ntk | yarn | llama3
    rope_factor: float = 1.0  # new context over the context of training
    rope_original_length: int = 8192  # positions, context of training
    rope_low: float = 1.0  # turns: lower end of the ramp between scaled and kept frequencies
    rope_high: float = 4.0  # turns: upper end
    bias: bool = True  # biases in dense layers and layer norms
    tie_embeddings: bool = True  # the head is the embedding table
    window: int = 0  # a query sees this many positions up to itself; 0: all
    dropout: float = 0.0  # probability
    init_std: float = 0.02  # of weights; those that write to the residual: / sqrt(2 num_layers)
    remat: str = "none"  # none | block | dots | names | offload: see nn/layers/stack.py
    # what names keeps and offload sends to the host: these, or mlp
    remat_names: tuple[str, ...] = ("query", "key", "value", "attention")
    scan_unroll: int = 1  # layers per iteration of the loop over depth; 0: all of them
    num_experts: int = 0  # feed-forward blocks to choose from, in every layer; 0: one, for all
    experts_per_token: int = 2
    expert_dim: int = 0  # hidden units of an expert; 0: those of the feed-forward block
    shared_experts: int = 0  # experts that every token goes through besides
    shared_gate: bool = False  # the shared ones count as much as a gate says
    router_scores: str = "softmax"  # softmax | sigmoid | softmax_of_chosen
    router_normalize: bool = True  # the weights of a token's experts add up to 1
    router_scale: float = 1.0  # factor of those weights
    router_groups: int = 1  # groups of experts
    router_top_groups: int = 1  # groups of which a token's experts may be
    router_group_score: str = "max"  # max | top2: what makes a group good
    router_bias_rate: float = 0.0  # step of the bias that balances the load; 0: no bias
    router_jitter: float = 0.0  # noise on the router's input, relative
    router_balance_loss: float = 0.0  # coefficient of the load-balance loss of each layer
    router_z_loss: float = 0.0  # coefficient of the squared log-partition of each layer
    router_capacity: float = 0.0  # most tokens of an expert, over the mean; 0: no limit

    def __post_init__(self) -> None:
        for field in ("vocab_size", "context_length", "dim", "num_layers", "num_heads"):
            if getattr(self, field) < 1:
                raise ValueError(f"model.{field}={getattr(self, field)}: must be at least 1")
        if not self.head_dim and self.dim % self.num_heads:
            raise ValueError(
                f"model.num_heads={self.num_heads} does not divide model.dim={self.dim}; "
                f"nearest that does: {names.nearest_divisor(self.dim, self.num_heads)}"
            )
        if self.num_heads % self.kv_heads:
            raise ValueError(
                f"model.num_kv_heads={self.num_kv_heads} does not divide "
                f"model.num_heads={self.num_heads}; nearest that does: "
                f"{names.nearest_divisor(self.num_heads, self.kv_heads)}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"model.dropout={self.dropout}: must be in [0, 1)")
        if self.num_experts:
            _ = self.routing  # checks its own fields
        remat_policy(self.remat, self.remat_names)
        names.lookup("model.position", self.position, POSITIONS)
        names.lookup("model.norm", self.norm, norm.NORMS)
        names.lookup("model.rope_scaling", self.rope_scaling, SCALINGS)
        activations.get(self.activation)

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def head_width(self) -> int:
        return self.head_dim or self.dim // self.num_heads

    @property
    def mlp_width(self) -> int:
        return self.mlp_dim or 4 * self.dim

    @property
    def routing(self) -> Routing:
        fields = [f.name for f in dataclasses.fields(Routing) if f.name not in ("experts", "top_k")]
        own = {name: getattr(self, f"router_{name}") for name in fields}
        return Routing(self.num_experts, self.experts_per_token, **own)

    @property
    def rotary(self) -> Rotary:
        return Rotary(
            self.rope_theta,
            self.rope_scaling,
            self.rope_factor,
            self.rope_original_length,
            self.rope_low,
            self.rope_high,
        )


class Block(Layer):
    """x + attention(norm(x)), then x + mlp(norm(x)); the carry of the scan over depth."""

    config: Config
    train: bool = False

    @nn.compact
    def __call__(
        self,
        carry: tuple[jax.Array, Cache | None],
        layer: jax.Array,
        positions_BT: jax.Array,
        segments_BT: jax.Array | None,
        rotary: Table | None,
    ) -> tuple[tuple[jax.Array, Cache | None], Aux]:
        c = self.config
        x_BTD, cache = carry
        wide = initializers.normal(c.init_std)
        narrow = initializers.normal(c.init_std * (2 * c.num_layers) ** -0.5)
        drop = Dropout(c.dropout, ("batch", "tokens", None), self.train)
        h_BTD, cache = Attention(
            heads=c.num_heads,
            kv_heads=c.kv_heads,
            head_dim=c.head_width,
            bias=c.bias,
            alibi=c.position == "alibi",
            dropout=c.dropout,
            train=self.train,
            kernel_init=wide,
            out_init=narrow,
            name="attention",
        )(
            norm.make(c.norm, c.norm_eps, c.bias, "attention_norm")(x_BTD),
            positions_BT,
            Pattern(causal=True, window=c.window),
            segments_BT,
            rotary,
            cache=cache,
            layer=layer,
        )
        x_BTD = x_BTD + drop(h_BTD)
        h_BTD, aux = self._feed_forward(
            norm.make(c.norm, c.norm_eps, c.bias, "mlp_norm")(x_BTD), wide, narrow
        )
        x_BTD = x_BTD + drop(h_BTD)
        self.sow("intermediates", "residual", x_BTD)
        return (x_BTD, cache), aux

    def _feed_forward(
        self, x_BTD: jax.Array, wide: Initializer, narrow: Initializer
    ) -> tuple[jax.Array, Aux]:
        c = self.config
        if not c.num_experts:
            mlp = FeedForward(
                c.mlp_width,
                activation=c.activation,
                bias=c.bias,
                kernel_init=wide,
                down_init=narrow,
                name="mlp",
            )
            return mlp(x_BTD), {}
        hidden = c.expert_dim or c.mlp_width
        y_BTD, aux = MoE(
            c.routing,
            hidden=hidden,
            activation=c.activation,
            shared_hidden=c.shared_experts * hidden,
            shared_gate=c.shared_gate,
            train=self.train,
            kernel_init=wide,
            down_init=narrow,
            name="moe",
        )(x_BTD)
        # The stack adds up over its layers: of metrics, unlike losses, the mean is wanted.
        return y_BTD, {k: v if k == "loss" else v / c.num_layers for k, v in aux.items()}


class Model(Layer):
    """Tokens to logits. `hidden` and `head` are its two halves, for losses over chunks."""

    config: Config
    dtype: Any = jnp.float32  # compute dtype
    train: bool = False  # dropout on

    def setup(self) -> None:
        c = self.config
        init = initializers.normal(c.init_std)
        self.embed = embed.Embed(c.vocab_size, c.dim, self.dtype, init)
        if c.position == "learned":
            self.positions = embed.PositionTable(c.context_length, c.dim, init)
        self.dropout = Dropout(c.dropout, ("batch", "tokens", None), self.train)
        blocks = stacked(Block, c.num_layers, 3, c.remat, c.scan_unroll, c.remat_names)
        self.blocks = blocks(c, self.train)
        self.final_norm = norm.make(c.norm, c.norm_eps, c.bias, "final_norm")
        if not c.tie_embeddings:
            self.output = embed.Head(c.vocab_size, c.dim, init)

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
            number = jnp.arange if cached else columns
            positions_BT = number(tokens_BT.shape[1])[None] + jnp.zeros_like(tokens_BT)
        tokens_BT = between_stages(tokens_BT)
        x_BTD = self.embed(tokens_BT)
        if c.position == "learned":
            x_BTD = x_BTD + self.positions(positions_BT, self.dtype)
        elif c.position == "sinusoidal":
            x_BTD = x_BTD + sinusoids(leave(positions_BT), c.dim).astype(self.dtype)
        # With a cache every shard of `context` holds all positions.
        split = () if cached else sequence_axes()
        return self.dropout(vary(x_BTD, (*BATCH_AXES, *split))), positions_BT

    def states(self, x_BTD: jax.Array) -> jax.Array:
        """The input of `head` from the output of the last block."""
        x_BTD = self.final_norm(share(x_BTD, states=True))
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

    def _seen(
        self, context: tuple[jax.Array, jax.Array | None]
    ) -> tuple[jax.Array, jax.Array | None, Table | None]:
        """What the blocks look at: positions, segments, rotary table."""
        positions_BT, segments_BT = context
        c = self.config
        rotary = c.rotary.table(positions_BT, c.head_width) if c.position == "rotary" else None
        return positions_BT, segments_BT, rotary

    def head(self, x_BTD: jax.Array, weight: Weight | None = None) -> jax.Array:
        """Logits of this shard's part of the vocabulary, (B, T, D) -> (B, T, v).

        weight: `head_weight`, for a loop over pieces of x.
        """
        apply = self.embed.attend if self.config.tie_embeddings else self.output
        return apply(x_BTD, weight)

    def head_weight(self, like: jax.Array) -> Weight:
        """The matrix of the head, gathered over fsdp, in the dtype of `like`."""
        held = self.embed.table if self.config.tie_embeddings else self.output.kernel
        return held.gathered(like)

    def head_positions(self, *per_position: jax.Array) -> list[jax.Array]:
        """Of arrays (B, T) with one entry per position, those that go with `hidden`."""
        return [embed.head_positions(x_BT, self.config.vocab_size) for x_BT in per_position]

    @property
    def head_weights(self) -> tuple[str, str]:
        """Names of the parameters that `states` and `head` use."""
        return "final_norm", "embed" if self.config.tie_embeddings else "output"

    def __call__(self, tokens_BT: jax.Array, **inputs: Any) -> jax.Array:
        """Logits (B, T, v); inputs as in `hidden`. Sows "attention" and "residual" per layer."""
        return self.head(self.hidden(tokens_BT, **inputs)[0])

    def empty_cache(self, batch: int, length: int) -> Cache:
        """Room for `length` positions of `batch` rows, this shard's heads only."""
        c = self.config
        split = [axis] if (axis := split_axis("heads")) else []
        shape = (c.num_layers, batch, kv_heads_here(c.num_heads, c.kv_heads), length, c.head_width)
        return vary(Cache.zeros(shape, self.dtype), (*BATCH_AXES, *split))


def _gpt2(dim: int, layers: int, heads: int) -> Config:
    return Config(vocab_size=50257, dim=dim, num_layers=layers, num_heads=heads)


def _llama3(dim: int, layers: int, heads: int, mlp: int) -> Config:
    return Config(
        vocab_size=128256,
        context_length=8192,
        dim=dim,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=8,
        mlp_dim=mlp,
        activation="swiglu",
        norm="rms",
        position="rotary",
        rope_theta=500000.0,
        bias=False,
        tie_embeddings=False,
    )


def _mixtral(dim: int, layers: int, heads: int, mlp: int, context: int) -> Config:
    """Jiang et al. 2024. transformers' balance loss, times 0.02, is the mean over layers."""
    return dataclasses.replace(
        _llama3(dim, layers, heads, mlp),
        vocab_size=32000,
        context_length=context,
        rope_theta=1e6,
        num_experts=8,
        router_balance_loss=0.02 / layers,
    )


def _llama31(config: Config, factor: float) -> Config:
    return dataclasses.replace(
        config, context_length=131072, rope_scaling="llama3", rope_factor=factor
    )


PRESETS = {
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "mixtral-8x7b": _mixtral(4096, 32, 32, 14336, 32768),
    "mixtral-8x22b": _mixtral(6144, 56, 48, 16384, 65536),
    "llama3-8b": _llama3(4096, 32, 32, 14336),
    "llama3-70b": _llama3(8192, 80, 64, 28672),
    "llama3-405b": _llama31(_llama3(16384, 126, 128, 53248), 8.0),
    "llama3.2-1b": dataclasses.replace(
        _llama31(_llama3(2048, 16, 32, 8192), 32.0), tie_embeddings=True
    ),
}


def tiny() -> Config:
    """A model that a CPU trains in a second; every size differs, so that no mix-up passes."""
    return Config(vocab_size=96, context_length=24, dim=32, num_layers=2, num_heads=4, mlp_dim=64)


def example(config: Config, batch: int) -> tuple[jax.Array, ...]:
    """Positional inputs of the model: tokens (batch, T)."""
    length = min(config.context_length, 16)
    return (jnp.arange(batch * length, dtype=jnp.int32).reshape(batch, -1) % config.vocab_size,)
