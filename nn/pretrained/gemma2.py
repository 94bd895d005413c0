"""Gemma Team 2024, Gemma 2: files of transformers' Gemma2ForCausalLM, in both directions.

Llama's names; norms on both sides of attention and feed-forward, whose scales are stored less 1;
scores and logits capped by a tanh; every second layer, the first among them, has a window.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nn.families.transformer import Config
from nn.pretrained import decoder
from nn.pretrained.table import Table, read, require

MODEL_TYPES = ("gemma2",)
FAMILY = "transformer"
# What the format means when config.json leaves a key out.
DEFAULTS: Mapping[str, Any] = {
    **decoder.DEFAULTS,
    "model_type": "gemma2",
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "max_position_embeddings": 8192,
    "hidden_activation": "gelu_pytorch_tanh",
    "head_dim": 256,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
    "use_bidirectional_attention": None,
}


def config_from(raw: Mapping[str, Any]) -> Config:
    """The config of a model from the content of its config.json.

    Raises:
      ValueError: a value that is wrong, or that our transformer cannot express.
    """
    c = read(raw, DEFAULTS)
    require(
        "our transformer",
        use_bidirectional_attention=(c["use_bidirectional_attention"] or False, False),
    )
    slides = [i % 2 == 0 for i in range(c["num_hidden_layers"])]
    fields = decoder.fields_from(c, "hidden_activation") | {"norm": "rms_one"}
    biases = decoder.biases_from(decoder.PROJECTIONS if c["attention_bias"] else (), mlp=False)
    return Config(
        **fields,
        **biases,
        norm_order="sandwich",
        embed_scale=c["hidden_size"] ** 0.5,
        attention_scale=c["query_pre_attn_scalar"] ** -0.5,
        attention_cap=c["attn_logit_softcapping"] or 0.0,
        logit_cap=c["final_logit_softcapping"] or 0.0,
        windows=decoder.windows_from(c, slides),
    )


def config_to(config: Config) -> dict[str, Any]:
    """The content of config.json.

    Raises:
      ValueError: a Gemma 2 cannot have a value of `config`.
    """
    raw = decoder.fields_to(config, "Gemma 2", "hidden_activation") | {
        "model_type": "gemma2",
        "architectures": ["Gemma2ForCausalLM"],
        "attention_bias": decoder.biased(config, "query"),
        "query_pre_attn_scalar": round((config.attention_scale or config.head_width**-0.5) ** -2),
        "attn_logit_softcapping": config.attention_cap or None,
        "final_logit_softcapping": config.logit_cap or None,
        **decoder.windows_to(config, "Gemma 2"),
    }
    return decoder.held("a Gemma 2 file", config, raw, config_from)


def table(config: Config, names: Iterable[str] | None = None) -> Table:
    """What lies where.

    Raises:
      ValueError: a Gemma 2 cannot have a value of `config`.
    """
    config_to(config)
    return decoder.table(config)
