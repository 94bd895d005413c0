"""Rotary embeddings of transformers with their published scalings, and sinusoids."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding

from tests.golden_store import Record
from tests.peers.packages import array, tensor, versions

VARIANTS = ("float32",)
B, T, H, K, OLD = 2, 6, 3, 16, 64

SCALINGS: dict[str, dict[str, Any]] = {
    "none": dict(rope_type="default", rope_theta=10000.0),
    "other_base": dict(rope_type="default", rope_theta=500.0),
    "linear": dict(rope_type="linear", rope_theta=10000.0, factor=2.5),
    # Of a sequence as long as the factor times the old context: then "dynamic" is "ntk".
    "ntk": dict(rope_type="dynamic", rope_theta=10000.0, factor=1.0),
    "yarn": dict(
        rope_type="yarn",
        rope_theta=100.0,
        factor=4.0,
        original_max_position_embeddings=OLD,
        beta_fast=8.0,
        beta_slow=0.5,
    ),
    "llama3": dict(
        rope_type="llama3",
        rope_theta=500.0,
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=OLD,
    ),
}
NTK_FACTOR = 3.0


def rotary(name: str) -> LlamaRotaryEmbedding:
    config = LlamaConfig(
        hidden_size=H * K,
        num_attention_heads=H,
        head_dim=K,
        max_position_embeddings=OLD if name == "ntk" else 4 * OLD,
        rope_parameters=SCALINGS[name],
    )
    return LlamaRotaryEmbedding(config)


def record(variant: str, seed: int) -> Record:
    """Frequencies, and queries turned at random positions; sinusoids of the same positions."""
    rng = np.random.default_rng(seed)
    positions = rng.integers(0, 100, (B, T))
    positions[0, -1] = round(NTK_FACTOR * OLD) - 1  # "dynamic" looks at the last one
    x = rng.normal(size=(B, T, H, K)).astype(variant)
    outputs = {}
    for name in SCALINGS:
        embedding = rotary(name)
        cos, sin = embedding(tensor(x), tensor(positions))
        heads_first = tensor(x).movedim(2, 1)
        turned, _ = apply_rotary_pos_emb(heads_first, heads_first, cos, sin)
        outputs[f"{name}/frequencies"] = array(embedding.inv_freq)
        outputs[f"{name}/turned"] = array(turned.movedim(1, 2))
    for width in (8, 13):
        table = MarianSinusoidalPositionalEmbedding(256, width)
        with torch.no_grad():
            table.weight.copy_(table.create_weight())
        outputs[f"sinusoids/{width}"] = array(table.weight)[positions]
    about = {
        "reference": "transformers Llama and Marian",
        "versions": versions("torch", "transformers"),
        "seed": seed,
        "scalings": SCALINGS,
        "ntk_factor": NTK_FACTOR,
        "original_length": OLD,
    }
    return Record({"x": x, "positions": positions.astype(np.int32)}, outputs, about)
