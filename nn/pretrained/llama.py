"""Touvron et al. 2023, Llama: files of transformers' LlamaForCausalLM, in both directions.

Kernels are (out, in) with the heads merged. The rotary embedding pairs features i and i + K/2, as
ours does (Meta's own files interleave them; these do not). `lm_head` is stored unless it is tied.
Newer configs keep the rotary options in `rope_parameters`, older ones in `rope_theta` and
`rope_scaling`; either is read, both are written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nn.families.transformer import Config
from nn.pretrained import decoder
from nn.pretrained.table import Table, read

MODEL_TYPES = ("llama",)
FAMILY = "transformer"
# What the format means when config.json leaves a key out.
DEFAULTS: Mapping[str, Any] = {
    **decoder.DEFAULTS,
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
}


def config_from(raw: Mapping[str, Any]) -> Config:
    """The config of a model from the content of its config.json.

    Raises:
      ValueError: a value that is wrong, or that our transformer cannot express.
    """
    c = read(raw, DEFAULTS)
    attention = decoder.PROJECTIONS if c["attention_bias"] else ()
    return Config(**decoder.fields_from(c), **decoder.biases_from(attention, c["mlp_bias"]))


def config_to(config: Config) -> dict[str, Any]:
    """The content of config.json.

    Raises:
      ValueError: a Llama cannot have a value of `config`.
    """
    raw = decoder.fields_to(config, "Llama") | {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": decoder.biased(config, "query"),
        "mlp_bias": decoder.biased(config, "mlp"),
    }
    return decoder.held("a Llama file", config, raw, config_from)


def table(config: Config, names: Iterable[str] | None = None) -> Table:
    """What lies where.

    Raises:
      ValueError: a Llama cannot have a value of `config`.
    """
    config_to(config)
    return decoder.table(config)
