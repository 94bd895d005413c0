"""The published decoders by name."""

from __future__ import annotations

import dataclasses

from nn.families.transformer.config import Config


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
