"""Every choice of the encoder-decoder transformer, with its default."""

from __future__ import annotations

import dataclasses

from nn import activations, names
from nn.layers import block, norm
from nn.layers.encoder_decoder import POSITIONS, Around
from nn.layers.stack import remat_policy

RATES = ("dropout", "attention_dropout", "mlp_dropout", "output_dropout")


@dataclasses.dataclass(frozen=True)
class Config:
    """The defaults are those of Vaswani et al. 2017, at a small size."""

    vocab_size: int = 256  # tokens, the same on both sides
    context_length: int = 512  # positions that the model can tell apart, on each side
    dim: int = 256  # residual width D
    encoder_layers: int = 4
    decoder_layers: int = 4
    num_heads: int = 4  # of the encoder
    decoder_heads: int = 0  # of the decoder; 0: as many
    head_dim: int = 0  # width of a head; 0: dim / heads
    mlp_dim: int = 0  # hidden units of the encoder's feed-forward block; 0: 4 * dim
    decoder_mlp_dim: int = 0  # those of the decoder's; 0: as many
    scale_embeddings: bool = True  # token vectors are multiplied by sqrt(dim)
    embed_norm: bool = False  # of tokens plus positions, on each side
    activation: str = "relu"  # a gated one (swiglu, geglu) adds a third matrix
    norm: str = "layer"  # layer | rms
    norm_eps: float = 1e-5
    norm_order: str = "post"  # pre | post | sandwich | output: see nn/layers/block.py
    final_norm: bool = False  # of the memory, and before the head
    position: str = "sinusoidal"  # sinusoidal | learned | relative | none
    position_offset: int = 0  # rows of the learned tables before that of position 0
    relative_buckets: int = 32  # distances that relative positions tell apart
    relative_distance: int = 128  # positions, from which on all distances are one bucket
    bias: bool = True  # biases in dense layers
    attention_scale: float = 0.0  # factor of the scores; 0: 1 / sqrt(head_dim)
    tie_embeddings: bool = True  # the head is the embedding table
    scale_head: bool = False  # states are divided by sqrt(dim) before the head
    head_bias: bool = False
    start_token: int = 0  # what the decoder's inputs begin with, before its first target
    dropout: float = 0.0  # probability: embeddings, branches
    attention_dropout: float = 0.0  # of the attention weights
    mlp_dropout: float = 0.0  # of the hidden units
    output_dropout: float = 0.0  # of the memory and of the input of the head
    attention_factor: float = 1.0  # of the scores besides; scale.rule sets it
    branch_factor: float = 1.0  # of what a branch adds to the residual; scale.rule sets it
    logit_factor: float = 1.0  # of the logits; scale.rule sets it
    embed_factor: float = 1.0  # of the token vectors besides; scale.rule sets it
    init_std: float = 0.02  # of weights
    embed_std: float = 0.0  # of the embedding table; 0: init_std
    remat: str = "none"  # none | block | dots | names | offload: see nn/layers/stack.py
    # what names keeps and offload sends to the host: these, or mlp
    remat_names: tuple[str, ...] = ("query", "key", "value", "attention")
    scan_unroll: int = 1  # layers per iteration of the loops over depth; 0: all of them

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "context_length", "dim", "encoder_layers", "decoder_layers")
        for field in (*sizes, "num_heads"):
            if getattr(self, field) < 1:
                raise ValueError(f"model.{field}={getattr(self, field)}: must be at least 1")
        for field in ("num_heads", "decoder_heads"):
            heads = getattr(self, field) or self.num_heads
            if not self.head_dim and self.dim % heads:
                raise ValueError(
                    f"model.{field}={heads} does not divide model.dim={self.dim}; "
                    f"nearest that does: {names.nearest_divisor(self.dim, heads)}"
                )
        for field in RATES:
            if not 0.0 <= getattr(self, field) < 1.0:
                raise ValueError(f"model.{field}={getattr(self, field)}: must be in [0, 1)")
        if not 0 <= self.start_token < self.vocab_size:
            last = self.vocab_size - 1
            raise ValueError(
                f"model.start_token={self.start_token}: must be in 0 to {last}; "
                f"nearest: {min(max(self.start_token, 0), last)}"
            )
        # The encoder has half of the buckets for each side, and half of those for exact distances.
        if self.relative_buckets < 4 or self.relative_buckets % 4:
            raise ValueError(
                f"model.relative_buckets={self.relative_buckets}: must be a multiple of 4; "
                f"nearest: {max(round(self.relative_buckets / 4), 1) * 4}"
            )
        if self.relative_distance <= self.relative_buckets // 2:
            raise ValueError(
                f"model.relative_distance={self.relative_distance}: must be more than half of "
                f"model.relative_buckets={self.relative_buckets}; "
                f"nearest: {self.relative_buckets // 2 + 1}"
            )
        names.lookup("model.position", self.position, POSITIONS)
        names.lookup("model.norm", self.norm, norm.NORMS)
        names.lookup("model.norm_order", self.norm_order, block.ORDERS)
        activations.get(self.activation)
        remat_policy(self.remat, self.remat_names)

    @property
    def embed_scale(self) -> float:
        return self.embed_factor * (float(self.dim**0.5) if self.scale_embeddings else 1.0)

    def factors(self, base: Config) -> dict[str, float]:
        """What `nn.learning.parametrisation` sets, beside a smaller model."""
        own, theirs = ([c.encoder, c.decoder] for c in (self, base))
        less = base.dim / self.dim
        # `scale_head` and `scale_embeddings` follow the root of the width.
        head = less if self.tie_embeddings else 1.0
        return block.factors(own, theirs) | {
            "logit_factor": head / less**0.5 if self.scale_head else head,
            "embed_factor": less**0.5 if self.scale_embeddings else 1.0,
        }

    @property
    def around(self) -> Around:
        return Around(
            position=self.position,
            rows=self.context_length + self.position_offset,
            offset=self.position_offset,
            buckets=self.relative_buckets,
            distance=self.relative_distance,
            embed_norm=self.embed_norm,
            final_norm=self.final_norm,
            output_dropout=self.output_dropout,
        )

    @property
    def encoder(self) -> block.Spec:
        return self._stack(self.encoder_layers, self.num_heads, self.mlp_dim, decoder=False)

    @property
    def decoder(self) -> block.Spec:
        heads, hidden = self.decoder_heads or self.num_heads, self.decoder_mlp_dim or self.mlp_dim
        return self._stack(self.decoder_layers, heads, hidden, decoder=True)

    def _stack(self, layers: int, heads: int, hidden: int, decoder: bool) -> block.Spec:
        return block.Spec(
            layers=layers,
            dim=self.dim,
            heads=heads,
            kv_heads=heads,
            head_dim=self.head_dim or self.dim // heads,
            mlp_dim=hidden or 4 * self.dim,
            activation=self.activation,
            norm=self.norm,
            norm_eps=self.norm_eps,
            order=self.norm_order,
            causal=decoder,
            cross=decoder,
            bias=self.bias,
            scale=self.attention_scale,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            mlp_dropout=self.mlp_dropout,
            attention_factor=self.attention_factor,
            branch_factor=self.branch_factor,
            init_std=self.init_std,
            out_std=self.init_std,
        )
