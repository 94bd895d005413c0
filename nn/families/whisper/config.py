"""Every choice of Whisper, with its default."""

from __future__ import annotations

import dataclasses

from nn import activations, names
from nn.layers import block
from nn.layers.spectrogram import mel_filters
from nn.layers.stack import remat_policy


@dataclasses.dataclass(frozen=True)
class Config:
    """The defaults are those of Radford et al. 2022, at a small size."""

    vocab_size: int = 256  # tokens
    context_length: int = 448  # positions of the decoder
    audio_context: int = 1500  # positions of the encoder, of 20 ms each: half as many as frames
    num_mels: int = 80  # bands of the spectrogram
    dim: int = 256  # residual width D
    encoder_layers: int = 4
    decoder_layers: int = 4
    num_heads: int = 4  # of the encoder
    decoder_heads: int = 0  # of the decoder; 0: as many
    mlp_dim: int = 0  # hidden units of the encoder's feed-forward block; 0: 4 * dim
    decoder_mlp_dim: int = 0  # those of the decoder's; 0: as many
    activation: str = "gelu"
    norm_eps: float = 1e-5
    tie_embeddings: bool = True  # the head is the embedding table
    dropout: float = 0.0  # probability: embeddings, branches
    attention_dropout: float = 0.0  # of the attention weights
    mlp_dropout: float = 0.0  # of the hidden units
    attention_factor: float = 1.0  # of the scores besides; scale.rule sets it
    branch_factor: float = 1.0  # of what a branch adds to the residual; scale.rule sets it
    logit_factor: float = 1.0  # of the logits; scale.rule sets it
    init_std: float = 0.02  # of weights but those of convolutions
    remat: str = "none"  # none | block | dots | names | offload: see nn/layers/stack.py
    # what names keeps and offload sends to the host: these, or mlp
    remat_names: tuple[str, ...] = ("query", "key", "value", "attention")
    scan_unroll: int = 1  # layers per iteration of the loops over depth; 0: all of them

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "context_length", "audio_context", "num_mels")
        for field in (*sizes, "encoder_layers", "decoder_layers", "num_heads"):
            if getattr(self, field) < 1:
                raise ValueError(f"model.{field}={getattr(self, field)}: must be at least 1")
        if self.dim < 4 or self.dim % 2:  # sines and cosines of two frequencies or more
            nearest = max(self.dim + self.dim % 2, 4)
            raise ValueError(f"model.dim={self.dim}: must be even, from 4 on; nearest: {nearest}")
        for field in ("num_heads", "decoder_heads"):
            heads = getattr(self, field) or self.num_heads
            if self.dim % heads:
                raise ValueError(
                    f"model.{field}={heads} does not divide model.dim={self.dim}; "
                    f"nearest that does: {names.nearest_divisor(self.dim, heads)}"
                )
        for field in ("dropout", "attention_dropout", "mlp_dropout"):
            if not 0.0 <= getattr(self, field) < 1.0:
                raise ValueError(f"model.{field}={getattr(self, field)}: must be in [0, 1)")
        mel_filters(self.num_mels)
        activations.get(self.activation)
        remat_policy(self.remat, self.remat_names)

    def factors(self, base: Config) -> dict[str, float]:
        """What `nn.learning.parametrisation` sets, beside a smaller model."""
        own, theirs = ([c.encoder, c.decoder] for c in (self, base))
        tied = base.dim / self.dim if self.tie_embeddings else 1.0
        return block.factors(own, theirs) | {"logit_factor": tied}

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
            head_dim=self.dim // heads,
            mlp_dim=hidden or 4 * self.dim,
            activation=self.activation,
            norm_eps=self.norm_eps,
            causal=decoder,
            cross=decoder,
            unbiased=("key",),  # a bias there adds the same to all scores of a query
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            mlp_dropout=self.mlp_dropout,
            attention_factor=self.attention_factor,
            branch_factor=self.branch_factor,
            init_std=self.init_std,
            out_std=self.init_std,
        )
