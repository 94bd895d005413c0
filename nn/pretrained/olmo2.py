"""OLMo Team 2024, OLMo 2: files of transformers' Olmo2ForCausalLM, in both directions.

Llama's names; norms stand after attention and feed-forward, inside the residual branch, and the
queries and keys of all heads together have an RMS norm.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nn.families.transformer import Config
from nn.pretrained import decoder
from nn.pretrained.table import Table, read

MODEL_TYPES = ("olmo2",)
FAMILY = "transformer"
# What the format means when config.json leaves a key out.
DEFAULTS: Mapping[str, Any] = {
    **decoder.DEFAULTS,
    "model_type": "olmo2",
    "vocab_size": 50304,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
}


def config_from(raw: Mapping[str, Any]) -> Config:
    """The config of a model from the content of its config.json.

    Raises:
      ValueError: a value that is wrong, or that our transformer cannot express.
    """
    c = read(raw, DEFAULTS)
    biases = decoder.biases_from(decoder.PROJECTIONS if c["attention_bias"] else (), mlp=False)
    return Config(**decoder.fields_from(c), **biases, qk_norm="row", norm_order="output")


def config_to(config: Config) -> dict[str, Any]:
    """The content of config.json.

    Raises:
      ValueError: an OLMo 2 cannot have a value of `config`.
    """
    raw = decoder.fields_to(config, "OLMo 2") | {
        "model_type": "olmo2",
        "architectures": ["Olmo2ForCausalLM"],
        "attention_bias": decoder.biased(config, "query"),
    }
    return decoder.held("an OLMo 2 file", config, raw, config_from)


def table(config: Config, names: Iterable[str] | None = None) -> Table:
    """What lies where.

    Raises:
      ValueError: an OLMo 2 cannot have a value of `config`.
    """
    config_to(config)
    return decoder.table(config)
