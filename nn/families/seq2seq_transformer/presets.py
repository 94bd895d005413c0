"""The published encoder-decoders by name."""

from __future__ import annotations

import dataclasses

from nn.families.seq2seq_transformer.config import Config


def _original(dim: int, heads: int, dropout: float) -> Config:
    """Vaswani et al. 2017, table 3, with their "about 37000" tokens for English-German."""
    return Config(
        vocab_size=37000,
        context_length=1024,
        dim=dim,
        encoder_layers=6,
        decoder_layers=6,
        num_heads=heads,
        dropout=dropout,
        init_std=dim**-0.5,
        embed_std=dim**-0.5,
    )


def _bart(dim: int, layers: int, heads: int, vocabulary: int) -> Config:
    """Lewis et al. 2020."""
    return Config(
        vocab_size=vocabulary,
        context_length=1024,
        dim=dim,
        encoder_layers=layers,
        decoder_layers=layers,
        num_heads=heads,
        scale_embeddings=False,
        embed_norm=True,
        activation="gelu",
        position="learned",
        position_offset=2,
        head_bias=True,
        start_token=2,
        dropout=0.1,
    )


def _t5(dim: int, layers: int, heads: int, mlp: int, head_dim: int = 64) -> Config:
    """Raffel et al. 2020, appendix; the sizes of 3b and 11b are in their heads and hidden units."""
    return Config(
        vocab_size=32128,
        dim=dim,
        encoder_layers=layers,
        decoder_layers=layers,
        num_heads=heads,
        head_dim=head_dim,
        mlp_dim=mlp,
        scale_embeddings=False,
        norm="rms",
        norm_eps=1e-6,
        norm_order="pre",
        final_norm=True,
        position="relative",
        bias=False,
        attention_scale=1.0,
        scale_head=True,
        dropout=0.1,
        attention_dropout=0.1,
        mlp_dropout=0.1,
        output_dropout=0.1,
        embed_std=1.0,
    )


def _t5_11(dim: int, layers: int, heads: int, mlp: int) -> Config:
    """Version 1.1 (Shazeer 2020), whose sizes are those of Flan-T5 and mT5."""
    return dataclasses.replace(
        _t5(dim, layers, heads, mlp),
        activation="geglu_tanh",
        tie_embeddings=False,
        scale_head=False,
    )


PRESETS = {
    "transformer-base": _original(512, 8, 0.1),
    "transformer-big": _original(1024, 16, 0.3),
    "opus-mt-en-de": dataclasses.replace(
        _original(512, 8, 0.1),
        vocab_size=58101,
        context_length=512,
        activation="silu",
        head_bias=True,
        start_token=58100,
        init_std=0.02,
        embed_std=0.0,
    ),
    "bart-base": _bart(768, 6, 12, 50265),
    "bart-large": _bart(1024, 12, 16, 50265),
    "t5-small": _t5(512, 6, 8, 2048),
    "t5-base": _t5(768, 12, 12, 3072),
    "t5-large": _t5(1024, 24, 16, 4096),
    "t5-3b": _t5(1024, 24, 32, 16384, 128),
    "t5-11b": _t5(1024, 24, 128, 65536, 128),
    "t5-v1.1-small": _t5_11(512, 8, 6, 1024),
    "t5-v1.1-base": _t5_11(768, 12, 12, 2048),
    "t5-v1.1-large": _t5_11(1024, 24, 16, 2816),
    "t5-v1.1-xl": _t5_11(2048, 24, 32, 5120),
    "t5-v1.1-xxl": _t5_11(4096, 24, 64, 10240),
}
