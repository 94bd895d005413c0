"""Every choice of the encoder, with its default; the defaults are BERT base."""

from __future__ import annotations

import dataclasses

from nn import activations, names
from nn.layers import block
from nn.layers.position import Rotary
from nn.layers.stack import remat_policy

# What the model ends with, and gives for tokens (B, T):
# none: states (B, T, D). pooled: (B, D), of each row. class: logits of classes (B, C).
# masked_token: logits of the vocabulary (B, T, V). masked_token_and_next_sentence: those, and (B,
# 2), whether the second sentence follows the first. replaced_token: a logit (B, T) that the token
# is not the original one.
HEADS = dict.fromkeys(
    (
        "none",
        "pooled",
        "class",
        "masked_token",
        "masked_token_and_next_sentence",
        "replaced_token",
    )
)
ORDERS = dict.fromkeys(("post", "pre"))
POSITIONS = dict.fromkeys(("learned", "rotary"))
POOLS = dict.fromkeys(("first", "mean"))


@dataclasses.dataclass(frozen=True)
class Config:
    vocab_size: int = 30522  # tokens
    context_length: int = 512  # positions that the model can tell apart
    token_types: int = 2  # kinds of tokens, such as first and second sentence; 0: not told apart
    pad_token: int = -1  # what fills rows up, where no segments are given; -1: nothing does
    dim: int = 768  # residual width D
    num_layers: int = 12
    num_heads: int = 12
    mlp_dim: int = 0  # hidden units of the feed-forward block; 0: 4 * dim
    embed_dim: int = 0  # width E of the tables, if it is not dim: projected before the blocks
    activation: str = "gelu"  # a gated one (geglu) adds a third matrix
    # post: norms after each branch. pre: before it, but none before the first, and one at the end
    norm_order: str = "post"
    norm_eps: float = 1e-12
    norm_bias: bool = True
    bias: bool = True  # biases in the blocks
    position: str = "learned"  # learned | rotary
    position_offset: int = 0  # rows of the learned table before that of position 0
    skip_padding: bool = False  # padding has no position: it is not counted, and has the row before
    rope_theta: float = 10000.0  # base of the rotary frequencies
    rope_local_theta: float = 0.0  # of the layers with a window; 0: as the others
    # a query sees itself and this many positions less one on both sides, in turn; 0: all
    windows: tuple[int, ...] = (0,)
    head: str = "masked_token"  # see HEADS
    head_activation: str = "gelu"  # of the dense layer before the logits of each token
    head_bias: bool = True  # of the dense layers before logits; the logits have one in any case
    num_classes: int = 2  # C, of head "class"
    pool: str = "first"  # first | mean: which positions stand for a row
    pool_activation: str = "tanh"  # of the dense layer that they go through
    pool_norm: bool = False  # and a norm after it
    dropout: float = 0.0  # probability: embeddings, branches, what is pooled
    attention_dropout: float = 0.0  # probability: attention weights
    attention_factor: float = 1.0  # of the scores besides; scale.rule sets it
    branch_factor: float = 1.0  # of what a branch adds to the residual; scale.rule sets it
    logit_factor: float = 1.0  # of the logits; scale.rule sets it
    init_std: float = 0.02  # of weights; order pre: those to the residual / sqrt(2 num_layers)
    remat: str = "none"  # none | block | dots | names | offload: see nn/layers/stack.py
    # what names keeps and offload sends to the host: these, or mlp
    remat_names: tuple[str, ...] = ("query", "key", "value", "attention")
    scan_unroll: int = 1  # layers per iteration of the loop over depth; 0: all of them

    def __post_init__(self) -> None:
        for field in ("vocab_size", "context_length", "dim", "num_layers", "num_heads"):
            if getattr(self, field) < 1:
                raise ValueError(f"model.{field}={getattr(self, field)}: must be at least 1")
        if self.dim % self.num_heads:
            raise ValueError(
                f"model.num_heads={self.num_heads} does not divide model.dim={self.dim}; "
                f"nearest that does: {names.nearest_divisor(self.dim, self.num_heads)}"
            )
        for field in ("dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, field) < 1.0:
                raise ValueError(f"model.{field}={getattr(self, field)}: must be in [0, 1)")
        if not self.windows or min(self.windows) < 0:
            raise ValueError(f"model.windows={self.windows}: one or more sizes, 0 for no limit")
        if self.skip_padding and not self.position_offset:
            raise ValueError(
                "model.skip_padding=True gives padding the row before that of position 0, and "
                "model.position_offset=0 leaves none; nearest: 1"
            )
        if self.head == "class" and self.num_classes < 2:
            raise ValueError(f"model.num_classes={self.num_classes}: must be at least 2")
        names.lookup("model.head", self.head, HEADS)
        names.lookup("model.norm_order", self.norm_order, ORDERS)
        names.lookup("model.position", self.position, POSITIONS)
        names.lookup("model.pool", self.pool, POOLS)
        for field in ("head_activation", "pool_activation"):
            if activations.is_gated(getattr(self, field)):
                raise ValueError(f"model.{field}={getattr(self, field)!r}: must not be gated")
        activations.get(self.activation)
        remat_policy(self.remat, self.remat_names)

    @property
    def kv_heads(self) -> int:
        return self.num_heads

    @property
    def head_width(self) -> int:
        return self.dim // self.num_heads

    @property
    def mlp_width(self) -> int:
        return self.mlp_dim or 4 * self.dim

    @property
    def embed_width(self) -> int:
        return self.embed_dim or self.dim

    @property
    def predicts_tokens(self) -> bool:
        return self.head in ("masked_token", "masked_token_and_next_sentence")

    @property
    def pools(self) -> bool:
        return self.head in ("pooled", "class", "masked_token_and_next_sentence")

    @property
    def block(self) -> block.Spec:
        pre = self.norm_order == "pre"
        return block.Spec(
            layers=self.num_layers,
            dim=self.dim,
            heads=self.num_heads,
            kv_heads=self.num_heads,
            head_dim=self.head_width,
            mlp_dim=self.mlp_width,
            activation=self.activation,
            norm="layer",
            norm_eps=self.norm_eps,
            norm_bias=self.norm_bias,
            order=self.norm_order,
            bare_first=pre,  # the embeddings are normed already
            causal=False,
            bias=self.bias,
            windows=self.windows,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            attention_factor=self.attention_factor,
            branch_factor=self.branch_factor,
            init_std=self.init_std,
            out_std=self.init_std * ((2 * self.num_layers) ** -0.5 if pre else 1.0),
        )

    def factors(self, base: Config) -> dict[str, float]:
        """What `nn.learning.parametrisation` sets, beside a smaller model."""
        tied = {"logit_factor": base.embed_width / self.embed_width}
        return block.factors([self.block], [base.block]) | tied

    @property
    def rotary(self) -> tuple[Rotary, ...]:
        """Of the layers without a window, and of those with one where they differ."""
        local = (Rotary(self.rope_local_theta),) if self.rope_local_theta else ()
        return (Rotary(self.rope_theta), *local)
