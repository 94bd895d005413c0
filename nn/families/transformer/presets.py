"""The published decoders by name."""

from __future__ import annotations

import dataclasses
from typing import Any

from nn.families.transformer.config import Config

Fields = dict[str, Any]


def _gpt(dim: int, layers: int, heads: int, **fields: Any) -> Config:
    """GPT-2, Radford et al. 2019, where nothing else is said."""
    size: Fields = {
        "vocab_size": 50257,
        "dim": dim,
        "num_layers": layers,
        "num_heads": heads,
    }
    return Config(**size | fields)


def _gpt3(dim: int, layers: int, heads: int) -> Config:
    """Brown et al. 2020, table 2.1; every second layer attends locally (section 2.1)."""
    return _gpt(dim, layers, heads, context_length=2048, windows=(0, 256))


def _gpt_neo(dim: int, layers: int, heads: int) -> Config:
    unscaled: Fields = {"attention_scale": 1.0, "unbiased": ("query", "key", "value")}
    return dataclasses.replace(_gpt3(dim, layers, heads), **unscaled)


def _opt(dim: int, layers: int, heads: int, **fields: Any) -> Config:
    """Zhang et al. 2022."""
    kind: Fields = {
        "vocab_size": 50272,
        "context_length": 2048,
        "activation": "relu",
        "dropout": 0.1,
    }
    rest: Fields = {"position_offset": 2, "attention_dropout": 0.0, **kind, **fields}
    return _gpt(dim, layers, heads, **rest)


def _palm(dim: int, layers: int, heads: int) -> Config:
    """Chowdhery et al. 2022, table 1: one key and value head, no biases, a tied head."""
    return Config(
        vocab_size=256000,
        context_length=2048,
        dim=dim,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=1,
        head_dim=256,
        mlp_dim=4 * dim,
        activation="swiglu",
        norm_bias=False,
        parallel="one_norm",
        position="rotary",
        bias=False,
    )


def _llama(dim: int, layers: int, heads: int, mlp: int, **fields: Any) -> Config:
    """Touvron et al. 2023, Llama 2, where nothing else is said."""
    size: Fields = {"dim": dim, "num_layers": layers, "num_heads": heads, "mlp_dim": mlp}
    kind: Fields = {
        "vocab_size": 32000,
        "context_length": 4096,
        "activation": "swiglu",
        "norm": "rms",
        "position": "rotary",
        "bias": False,
        "tie_embeddings": False,
    }
    return Config(**size | kind | fields)


def _llama3(dim: int, layers: int, heads: int, mlp: int, **fields: Any) -> Config:
    kind: Fields = {
        "vocab_size": 128256,
        "context_length": 8192,
        "num_kv_heads": 8,
        "rope_theta": 5e5,
    }
    return _llama(dim, layers, heads, mlp, **kind | fields)


def _llama31(dim: int, layers: int, heads: int, mlp: int, factor: float, **fields: Any) -> Config:
    scaling: Fields = {
        "context_length": 131072,
        "rope_scaling": "llama3",
        "rope_factor": factor,
    }
    return _llama3(dim, layers, heads, mlp, **scaling | fields)


def _mixtral(dim: int, layers: int, heads: int, mlp: int, context: int) -> Config:
    """Jiang et al. 2024. transformers' balance loss, times 0.02, is the mean over layers."""
    mixture: Fields = {"num_experts": 8, "router_balance_loss": 0.02 / layers}
    kind: Fields = {"context_length": context, "num_kv_heads": 8, "rope_theta": 1e6}
    return _llama(dim, layers, heads, mlp, **kind, **mixture)


def _qwen2(dim: int, layers: int, heads: int, kv_heads: int, mlp: int, **fields: Any) -> Config:
    """Qwen Team 2024, Qwen 2.5."""
    kind: Fields = {
        "bias": True,
        "unbiased": ("out", "mlp"),
        "rope_theta": 1e6,
        "norm_eps": 1e-6,
    }
    size: Fields = {"vocab_size": 151936, "context_length": 32768, "num_kv_heads": kv_heads}
    return _llama(dim, layers, heads, mlp, **kind | size | fields)


def _qwen3(dim: int, layers: int, heads: int, mlp: int, **fields: Any) -> Config:
    """Qwen Team 2025; heads of 128 features, whatever the width."""
    width = 0 if 128 * heads == dim else 128
    kind: Fields = {"qk_norm": "head", "head_dim": width, "rope_theta": 1e6, "norm_eps": 1e-6}
    size: Fields = {"vocab_size": 151936, "context_length": 40960, "num_kv_heads": 8}
    return _llama(dim, layers, heads, mlp, **kind | size | fields)


def _gemma2(dim: int, layers: int, heads: int, kv_heads: int, mlp: int, **fields: Any) -> Config:
    """Gemma Team 2024."""
    kind: Fields = {
        "vocab_size": 256000,
        "context_length": 8192,
        "num_kv_heads": kv_heads,
        "head_dim": 256,
        "activation": "geglu_tanh",
        "norm": "rms_one",
        "norm_eps": 1e-6,
        "norm_order": "sandwich",
        "embed_scale": dim**0.5,
        "attention_scale": 256**-0.5,
        "attention_cap": 50.0,
        "logit_cap": 30.0,
        "windows": (4096, 0),
        "tie_embeddings": True,
    }
    return _llama(dim, layers, heads, mlp, **kind | fields)


def _gemma3(
    dim: int, layers: int, heads: int, kv_heads: int, mlp: int, window: int, **fields: Any
) -> Config:
    """Gemma Team 2025; the text models."""
    kind: Fields = {
        "vocab_size": 262208,
        "context_length": 131072,
        "qk_norm": "head",
        "attention_cap": 0.0,
        "logit_cap": 0.0,
        "windows": (window,) * 5 + (0,),
        "rope_theta": 1e6,
        "rope_local_theta": 1e4,
        "rope_scaling": "linear",
        "rope_factor": 8.0,
    }
    return _gemma2(dim, layers, heads, kv_heads, mlp, **kind | fields)


def _olmo2(dim: int, layers: int, heads: int, mlp: int) -> Config:
    """OLMo Team 2024."""
    kind: Fields = {
        "norm_order": "output",
        "qk_norm": "row",
        "rope_theta": 5e5,
        "norm_eps": 1e-6,
    }
    return _llama(dim, layers, heads, mlp, vocab_size=100352, **kind)


PRESETS = {
    "gpt": _gpt(
        768,
        12,
        12,
        vocab_size=40478,
        context_length=512,
        norm_order="post",
        final_norm=False,
        dropout=0.1,
    ),
    "gpt2": _gpt(768, 12, 12),
    "gpt2-medium": _gpt(1024, 24, 16),
    "gpt2-large": _gpt(1280, 36, 20),
    "gpt2-xl": _gpt(1600, 48, 25),
    "gpt3-small": _gpt3(768, 12, 12),
    "gpt3-xl": _gpt3(2048, 24, 16),
    "gpt3-6.7b": _gpt3(4096, 32, 32),
    "gpt3": _gpt3(12288, 96, 96),
    "gpt-neo-125m": _gpt_neo(768, 12, 12),
    "gpt-neo-1.3b": _gpt_neo(2048, 24, 16),
    "gpt-neo-2.7b": _gpt_neo(2560, 32, 20),
    "gpt-j-6b": _gpt(
        4096,
        28,
        16,
        vocab_size=50400,
        context_length=2048,
        parallel="one_norm",
        position="rotary",
        rope_dim=64,
        rope_interleaved=True,
        unbiased=("query", "key", "value", "out"),
        head_bias=True,
        tie_embeddings=False,
    ),
    "gpt-neox-20b": _gpt(
        6144,
        44,
        64,
        vocab_size=50432,
        context_length=2048,
        activation="gelu",
        parallel="two_norms",
        position="rotary",
        rope_dim=24,
        tie_embeddings=False,
    ),
    "opt-125m": _opt(768, 12, 12),
    "opt-350m": _opt(1024, 24, 16, embed_dim=512, norm_order="post", final_norm=False),
    "opt-1.3b": _opt(2048, 24, 32),
    "opt-6.7b": _opt(4096, 32, 32),
    "palm-8b": _palm(4096, 32, 16),
    "palm-62b": _palm(8192, 64, 32),
    "palm-540b": _palm(18432, 118, 48),
    "llama2-7b": _llama(4096, 32, 32, 11008),
    "llama2-13b": _llama(5120, 40, 40, 13824),
    "llama2-70b": _llama(8192, 80, 64, 28672, num_kv_heads=8),
    "llama3-8b": _llama3(4096, 32, 32, 14336),
    "llama3-70b": _llama3(8192, 80, 64, 28672),
    "llama3-405b": _llama31(16384, 126, 128, 53248, 8.0),
    "llama3.2-1b": _llama31(2048, 16, 32, 8192, 32.0, tie_embeddings=True),
    "llama3.2-3b": _llama31(3072, 28, 24, 8192, 32.0, tie_embeddings=True),
    "mistral-7b": _llama(
        4096, 32, 32, 14336, num_kv_heads=8, windows=(4096,), context_length=32768
    ),
    "mixtral-8x7b": _mixtral(4096, 32, 32, 14336, 32768),
    "mixtral-8x22b": _mixtral(6144, 56, 48, 16384, 65536),
    "qwen2.5-0.5b": _qwen2(896, 24, 14, 2, 4864, tie_embeddings=True),
    "qwen2.5-7b": _qwen2(3584, 28, 28, 4, 18944, vocab_size=152064, context_length=131072),
    "qwen3-0.6b": _qwen3(1024, 28, 16, 3072, tie_embeddings=True),
    "qwen3-8b": _qwen3(4096, 36, 32, 12288),
    "gemma2-2b": _gemma2(2304, 26, 8, 4, 9216),
    "gemma2-9b": _gemma2(3584, 42, 16, 8, 14336),
    "gemma3-1b": _gemma3(
        1152,
        26,
        4,
        1,
        6912,
        512,
        vocab_size=262144,
        context_length=32768,
        rope_scaling="none",
        rope_factor=1.0,
    ),
    "gemma3-4b": _gemma3(2560, 34, 8, 4, 10240, 1024),
    "olmo2-7b": _olmo2(4096, 32, 32, 11008),
    "olmo2-13b": _olmo2(5120, 40, 40, 13824),
}
