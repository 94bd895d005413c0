"""Black et al. 2021, GPT-Neo: files of transformers' GPTNeoForCausalLM, in both directions.

Every second layer sees the last 256 positions only, as in GPT-3 (Brown et al. 2020). Scores are not
scaled; queries, keys and values have no biases.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nn import names as names_
from nn.families.transformer import Config
from nn.pretrained import decoder
from nn.pretrained.table import Row, Table, dense, prefix, read, require

MODEL_TYPES = ("gpt_neo",)
FAMILY = "transformer"
# What the format means when config.json leaves a key out.
DEFAULTS: Mapping[str, Any] = {
    "model_type": "gpt_neo",
    "vocab_size": 50257,
    "max_position_embeddings": 2048,
    "hidden_size": 2048,
    "num_layers": 24,
    "num_heads": 16,
    "attention_types": [[["global", "local"], 12]],
    "window_size": 256,
    "intermediate_size": None,  # None: 4 * hidden_size
    "activation_function": "gelu_new",
    "resid_dropout": 0.0,
    "embed_dropout": 0.0,
    "attention_dropout": 0.0,
    "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
}


def config_from(raw: Mapping[str, Any]) -> Config:
    """The config of a model from the content of its config.json.

    Raises:
      ValueError: a value that is wrong, or that our transformer cannot express.
    """
    c = read(raw, DEFAULTS)
    require("our transformer", embed_dropout=(c["embed_dropout"], c["resid_dropout"]))
    kinds = [kind for turn, times in c["attention_types"] for kind in turn * times]
    if len(kinds) != c["num_layers"]:
        raise ValueError(
            f"attention_types={c['attention_types']}: of {len(kinds)} layers; there are "
            f"num_layers={c['num_layers']}"
        )
    types = {"global": decoder.LAYER_TYPES[0], "local": decoder.LAYER_TYPES[1]}
    layers = {
        "layer_types": [names_.lookup("attention_types", kind, types) for kind in kinds],
        "sliding_window": c["window_size"],
    }
    activation = c["activation_function"]
    return Config(
        vocab_size=c["vocab_size"],
        context_length=c["max_position_embeddings"],
        dim=c["hidden_size"],
        num_layers=c["num_layers"],
        num_heads=c["num_heads"],
        mlp_dim=c["intermediate_size"] or 0,
        activation=names_.lookup("activation_function", activation, decoder.PLAIN),
        norm_eps=c["layer_norm_epsilon"],
        attention_scale=1.0,
        unbiased=("query", "key", "value"),
        windows=decoder.windows_from(layers),
        tie_embeddings=c["tie_word_embeddings"],
        dropout=c["resid_dropout"],
        attention_dropout=decoder.rate_from(c["attention_dropout"], c["resid_dropout"]),
        init_std=c["initializer_range"],
    )


def config_to(config: Config) -> dict[str, Any]:
    """The content of config.json. It names no special tokens: those are the tokenizer's.

    Raises:
      ValueError: a GPT-Neo cannot have a value of `config`.
    """
    layers = decoder.windows_to(config, "GPT-Neo")
    theirs = dict(zip(decoder.LAYER_TYPES, ("global", "local"), strict=True))
    kinds = [theirs[kind] for kind in layers["layer_types"]]
    raw = {
        "model_type": "gpt_neo",
        "architectures": ["GPTNeoForCausalLM"],
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "hidden_size": config.dim,
        "num_layers": config.num_layers,
        "num_heads": config.num_heads,
        "attention_types": [[kinds, 1]],
        "attention_layers": kinds,
        "window_size": layers["sliding_window"] or DEFAULTS["window_size"],
        "intermediate_size": config.mlp_dim or None,
        "activation_function": decoder.activation_to(config, decoder.PLAIN, "GPT-Neo"),
        "resid_dropout": config.dropout,
        "embed_dropout": config.dropout,
        "attention_dropout": config.attention_rate,
        "layer_norm_epsilon": config.norm_eps,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return decoder.held("a GPT-Neo file", config, raw, config_from)


def table(config: Config, names: Iterable[str] | None = None) -> Table:
    """What lies where.

    Raises:
      ValueError: a GPT-Neo cannot have a value of `config`.
    """
    config_to(config)
    base = prefix(names, "transformer.")
    D, V, layer = config.dim, config.vocab_size, f"{base}h.{{}}"
    projections = ("q_proj", "k_proj", "v_proj", "out_proj")
    rows = [
        Row(f"{base}wte.weight", ("embed/embedding",), (V, D)),
        Row(f"{base}wpe.weight", ("positions/embedding",), (config.context_length, D)),
        *decoder.norm(f"{layer}.ln_1", "blocks/attention_norm", D),
        *decoder.attention(config, f"{layer}.attn.attention", projections),
        *decoder.norm(f"{layer}.ln_2", "blocks/mlp_norm", D),
        *decoder.feed_forward(config, up=f"{layer}.mlp.c_fc", down=f"{layer}.mlp.c_proj"),
        *decoder.norm(f"{base}ln_f", "final_norm", D),
    ]
    if not config.tie_embeddings:
        rows += dense("lm_head", "output/kernel", (D, V), 1)
    copies = {"lm_head.weight": f"{base}wte.weight"} if config.tie_embeddings else {}
    masks = r"(transformer\.)?h\.\d+\.attn\.attention\.(masked_)?bias"
    return Table(tuple(rows), config.num_layers, masks, copies)
