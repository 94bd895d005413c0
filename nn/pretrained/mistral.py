"""Jiang et al. 2023, Mistral 7B: files of transformers' MistralForCausalLM, in both directions.

Llama's names; every layer looks back over a sliding window, if config.json has one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nn.families.transformer import Config
from nn.pretrained import decoder
from nn.pretrained.table import Table, read

MODEL_TYPES = ("mistral",)
FAMILY = "transformer"
# What the format means when config.json leaves a key out.
DEFAULTS: Mapping[str, Any] = {
    **decoder.DEFAULTS,
    "model_type": "mistral",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 131072,
    "num_key_value_heads": 8,
    "sliding_window": 4096,
}


def config_from(raw: Mapping[str, Any]) -> Config:
    """The config of a model from the content of its config.json.

    Raises:
      ValueError: a value that is wrong, or that our transformer cannot express.
    """
    c = read(raw, DEFAULTS)
    windows = decoder.windows_from(c)
    return Config(**decoder.fields_from(c), bias=False, windows=windows)


def config_to(config: Config) -> dict[str, Any]:
    """The content of config.json.

    Raises:
      ValueError: a Mistral cannot have a value of `config`.
    """
    raw = decoder.fields_to(config, "Mistral") | {
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        "sliding_window": decoder.windows_to(config, "Mistral")["sliding_window"],
    }
    return decoder.held("a Mistral file", config, raw, config_from)


def table(config: Config, names: Iterable[str] | None = None) -> Table:
    """What lies where.

    Raises:
      ValueError: a Mistral cannot have a value of `config`.
    """
    config_to(config)
    return decoder.table(config)
