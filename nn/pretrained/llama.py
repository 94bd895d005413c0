"""Touvron et al. 2023, Llama: files of transformers' LlamaForCausalLM, in both directions.

Kernels are (out, in) with the heads merged. The rotary embedding pairs features i and i + K/2, as
ours does (Meta's own files interleave them; these do not). `lm_head` is stored unless it is tied.
Newer configs keep the rotary options in `rope_parameters`, older ones in `rope_theta` and
`rope_scaling`; either is read, both are written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nn import names
from nn.families.transformer import Config
from nn.pretrained import decoder
from nn.pretrained.table import Table, dense, read, require

MODEL_TYPES = ("llama",)
FAMILY = "transformer"
# What the format means when config.json leaves a key out.
DEFAULTS: Mapping[str, Any] = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,  # None: as many as attention heads
    "head_dim": None,  # None: hidden_size / num_attention_heads
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "attention_dropout": 0.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "rope_parameters": None,
}
# Theirs -> our gated activation.
ACTIVATIONS = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu": "geglu",
    "gelu_pytorch_tanh": "geglu_tanh",
    "gelu_new": "geglu_tanh",
    "relu": "reglu",
    "sigmoid": "glu",
}
# Rotary options of each rope_type: theirs -> our field. Default: no more than the base.
ROPE_TYPES: Mapping[str, Mapping[str, str]] = {
    "default": {},
    "linear": {"factor": "rope_factor"},
    "llama3": {
        "factor": "rope_factor",
        "low_freq_factor": "rope_low",
        "high_freq_factor": "rope_high",
        "original_max_position_embeddings": "rope_original_length",
    },
}


def config_from(raw: Mapping[str, Any]) -> Config:
    """The config of a model from the content of its config.json.

    Raises:
      ValueError: a value that is wrong, or that our transformer cannot express.
    """
    c = read(raw, DEFAULTS)
    require(
        "our transformer",
        attention_dropout=(c["attention_dropout"], 0.0),
        mlp_bias=(c["mlp_bias"], c["attention_bias"]),
    )
    return Config(**decoder.fields_from(c, ACTIVATIONS), bias=c["attention_bias"], **_rope_from(c))


def _rope_from(c: Mapping[str, Any]) -> dict[str, Any]:
    """Our rotary fields from the old keys or the new ones."""
    given = c["rope_scaling"] or c["rope_parameters"] or {}
    rope = {
        "rope_theta": c["rope_theta"],
        "partial_rotary_factor": 1.0,
        "original_max_position_embeddings": c["max_position_embeddings"],
        "rope_type": given["type"] if "type" in given else "default",
    } | dict(given)
    require("our transformer", partial_rotary_factor=(rope["partial_rotary_factor"], 1.0))
    kind = rope["rope_type"]
    fields = names.lookup("rope_type", kind, ROPE_TYPES)
    for key in fields:
        if key not in rope:
            raise ValueError(f"rope_type={kind!r} without {key!r}: needs {', '.join(fields)}")
    found = {ours: rope[theirs] for theirs, ours in fields.items()}
    scaling = "none" if kind == "default" else kind
    return {"rope_theta": float(rope["rope_theta"]), "rope_scaling": scaling, **found}


def config_to(config: Config) -> dict[str, Any]:
    """The content of config.json.

    Raises:
      ValueError: a Llama cannot have a value of `config`.
    """
    require(
        "a Llama file",
        norm=(config.norm, "rms"),
        position=(config.position, "rotary"),
        windows=(config.windows, (0,)),
        dropout=(config.dropout, 0.0),
    )
    kind = "default" if config.rope_scaling == "none" else config.rope_scaling
    fields = names.lookup("rope_scaling of Llama", kind, ROPE_TYPES)
    scaling = {"rope_type": kind} | {key: getattr(config, ours) for key, ours in fields.items()}
    return decoder.fields_to(config, ACTIVATIONS, "Llama") | {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
        "rope_scaling": scaling if fields else None,
        "rope_parameters": {"rope_theta": config.rope_theta, **scaling},
    }


def table(config: Config, names: Iterable[str] | None = None) -> Table:
    """What lies where.

    Raises:
      ValueError: a Llama cannot have a value of `config`.
    """
    config_to(config)
    D, F = config.dim, config.mlp_width
    rows = []
    for name, matrix in (("gate", (D, F)), ("up", (D, F)), ("down", (F, D))):
        path = f"blocks/mlp/{name}"
        bias = f"{path}/bias" if config.bias else ""
        rows += dense(f"{decoder.LAYER}.mlp.{name}_proj", f"{path}/kernel", matrix, 1, bias)
    return decoder.table(config, rows)
