"""Qwen Team 2025, Qwen 3: files of transformers' Qwen3ForCausalLM, in both directions.

Llama's names; the queries and keys of each head have an RMS norm. Windows are as in Qwen 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nn.families.transformer import Config
from nn.pretrained import decoder
from nn.pretrained.table import Table, read

MODEL_TYPES = ("qwen3",)
FAMILY = "transformer"
# What the format means when config.json leaves a key out.
DEFAULTS: Mapping[str, Any] = {
    **decoder.DEFAULTS,
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "use_sliding_window": False,
    "max_window_layers": 28,
}


def config_from(raw: Mapping[str, Any]) -> Config:
    """The config of a model from the content of its config.json.

    Raises:
      ValueError: a value that is wrong, or that our transformer cannot express.
    """
    c = read(raw, DEFAULTS)
    slides = [i >= c["max_window_layers"] for i in range(c["num_hidden_layers"])]
    windows = decoder.windows_from(c, slides) if c["use_sliding_window"] else (0,)
    biases = decoder.biases_from(decoder.PROJECTIONS if c["attention_bias"] else (), mlp=False)
    return Config(**decoder.fields_from(c), **biases, qk_norm="head", windows=windows)


def config_to(config: Config) -> dict[str, Any]:
    """The content of config.json.

    Raises:
      ValueError: a Qwen 3 cannot have a value of `config`.
    """
    raw = decoder.fields_to(config, "Qwen 3") | {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": decoder.biased(config, "query"),
        "use_sliding_window": max(config.windows) > 0,
        **decoder.windows_to(config, "Qwen 3"),
    }
    return decoder.held("a Qwen 3 file", config, raw, config_from)


def table(config: Config, names: Iterable[str] | None = None) -> Table:
    """What lies where.

    Raises:
      ValueError: a Qwen 3 cannot have a value of `config`.
    """
    config_to(config)
    return decoder.table(config)
