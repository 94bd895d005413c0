"""Gemma Team 2025, Gemma 3: the text model, files of transformers' Gemma3ForCausalLM, both ways.

As Gemma 2, but with norms of queries and keys for the caps; five layers of six have a window, and
these turn their queries and keys by frequencies of their own, which are never scaled.
`rope_parameters` holds both; older files have rope_local_base_freq beside rope_theta.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nn.families.transformer import Config
from nn.pretrained import decoder
from nn.pretrained.table import Table, read, require

MODEL_TYPES = ("gemma3_text",)
FAMILY = "transformer"
# What the format means when config.json leaves a key out.
DEFAULTS: Mapping[str, Any] = {
    **decoder.DEFAULTS,
    "model_type": "gemma3_text",
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "max_position_embeddings": 131072,
    "hidden_activation": "gelu_pytorch_tanh",
    "head_dim": 256,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "sliding_window_pattern": 6,
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
    "use_bidirectional_attention": False,
}


def config_from(raw: Mapping[str, Any]) -> Config:
    """The config of a model from the content of its config.json.

    Raises:
      ValueError: a value that is wrong, or that our transformer cannot express.
    """
    c = read(raw, DEFAULTS)
    require(
        "our transformer",
        use_bidirectional_attention=(c["use_bidirectional_attention"], False),
    )
    local, every = c["rope_local_base_freq"], c["sliding_window_pattern"]
    given = c["rope_parameters"] or {}
    if "sliding_attention" in given:
        require(
            "our transformer",
            rope_type=(given["sliding_attention"]["rope_type"], "default"),
        )
        local = given["sliding_attention"]["rope_theta"]
        c |= {"rope_parameters": given["full_attention"]}
    slides = [(i + 1) % every > 0 for i in range(c["num_hidden_layers"])]
    fields = decoder.fields_from(c, "hidden_activation") | {"norm": "rms_one"}
    biases = decoder.biases_from(decoder.PROJECTIONS if c["attention_bias"] else (), mlp=False)
    return Config(
        **fields,
        **biases,
        norm_order="sandwich",
        qk_norm="head",
        embed_scale=c["hidden_size"] ** 0.5,
        attention_scale=c["query_pre_attn_scalar"] ** -0.5,
        rope_local_theta=float(local),
        attention_cap=c["attn_logit_softcapping"] or 0.0,
        logit_cap=c["final_logit_softcapping"] or 0.0,
        windows=decoder.windows_from(c, slides),
    )


def config_to(config: Config) -> dict[str, Any]:
    """The content of config.json.

    Raises:
      ValueError: a Gemma 3 cannot have a value of `config`.
    """
    whole = {"rope_theta": config.rope_theta, **decoder.scaling_to(config, "Gemma 3")}
    local = {"rope_theta": config.rope_local_theta, "rope_type": "default"}
    raw = decoder.fields_to(config, "Gemma 3", "hidden_activation") | {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        "attention_bias": decoder.biased(config, "query"),
        "query_pre_attn_scalar": round((config.attention_scale or config.head_width**-0.5) ** -2),
        "attn_logit_softcapping": config.attention_cap or None,
        "final_logit_softcapping": config.logit_cap or None,
        "rope_parameters": {"full_attention": whole, "sliding_attention": local},
        "rope_local_base_freq": config.rope_local_theta,
        **decoder.windows_to(config, "Gemma 3"),
    }
    return decoder.held("a Gemma 3 file", config, raw, config_from)


def table(config: Config, names: Iterable[str] | None = None) -> Table:
    """What lies where.

    Raises:
      ValueError: a Gemma 3 cannot have a value of `config`.
    """
    config_to(config)
    return decoder.table(config)
