"""Radford et al. 2018, GPT: files of transformers' OpenAIGPTLMHeadModel, in both directions.

As GPT-2, but with norms after each branch and none before the head. Their "gelu" is the tanh form.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nn import names as names_
from nn.families.transformer import Config
from nn.pretrained import decoder
from nn.pretrained.table import Row, Table, prefix, read, require

MODEL_TYPES = ("openai-gpt",)
FAMILY = "transformer"
# What the format means when config.json leaves a key out.
DEFAULTS: Mapping[str, Any] = {
    "model_type": "openai-gpt",
    "vocab_size": 40478,
    "n_positions": 512,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "afn": "gelu",
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
}
ACTIVATIONS = {"gelu": "gelu_tanh", "relu": "relu", "swish": "silu"}


def config_from(raw: Mapping[str, Any]) -> Config:
    """The config of a model from the content of its config.json.

    Raises:
      ValueError: a value that is wrong, or that our transformer cannot express.
    """
    c = read(raw, DEFAULTS)
    require(
        "our transformer",
        embd_pdrop=(c["embd_pdrop"], c["resid_pdrop"]),
        tie_word_embeddings=(c["tie_word_embeddings"], True),
    )
    return Config(
        vocab_size=c["vocab_size"],
        context_length=c["n_positions"],
        dim=c["n_embd"],
        num_layers=c["n_layer"],
        num_heads=c["n_head"],
        activation=names_.lookup("afn", c["afn"], ACTIVATIONS),
        norm_order="post",
        final_norm=False,
        norm_eps=c["layer_norm_epsilon"],
        dropout=c["resid_pdrop"],
        attention_dropout=decoder.rate_from(c["attn_pdrop"], c["resid_pdrop"]),
        init_std=c["initializer_range"],
    )


def config_to(config: Config) -> dict[str, Any]:
    """The content of config.json. It names no special tokens: those are the tokenizer's.

    Raises:
      ValueError: a GPT cannot have a value of `config`.
    """
    raw = {
        "model_type": "openai-gpt",
        "architectures": ["OpenAIGPTLMHeadModel"],
        "vocab_size": config.vocab_size,
        "n_positions": config.context_length,
        "n_embd": config.dim,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "afn": decoder.activation_to(config, ACTIVATIONS, "GPT"),
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.attention_rate,
        "layer_norm_epsilon": config.norm_eps,
        "initializer_range": config.init_std,
        "tie_word_embeddings": True,
    }
    return decoder.held("a GPT file", config, raw, config_from)


def table(config: Config, names: Iterable[str] | None = None) -> Table:
    """What lies where.

    Raises:
      ValueError: a GPT cannot have a value of `config`.
    """
    config_to(config)
    base = prefix(names, "transformer.")
    D, V = config.dim, config.vocab_size
    rows = [
        Row(f"{base}tokens_embed.weight", ("embed/embedding",), (V, D)),
        Row(f"{base}positions_embed.weight", ("positions/embedding",), (config.context_length, D)),
        *decoder.gpt_layers(config, f"{base}h.{{}}"),
    ]
    copies = {"lm_head.weight": f"{base}tokens_embed.weight"}
    masks = r"(transformer\.)?(h\.\d+\.attn\.bias|position_ids)"
    return Table(tuple(rows), config.num_layers, masks, copies)
