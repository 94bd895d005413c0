"""Zhang et al. 2022, OPT: files of transformers' OPTForCausalLM, in both directions.

Learned positions begin at row 2 of their table. The model of 350 M has norms after each branch,
none before the head, and narrower token vectors that are projected in and out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nn import names as names_
from nn.families.transformer import Config
from nn.pretrained import decoder
from nn.pretrained.table import Row, Table, dense, prefix, read, require

MODEL_TYPES = ("opt",)
FAMILY = "transformer"
# What the format means when config.json leaves a key out.
DEFAULTS: Mapping[str, Any] = {
    "model_type": "opt",
    "vocab_size": 50272,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "ffn_dim": 3072,
    "max_position_embeddings": 2048,
    "do_layer_norm_before": True,
    "_remove_final_layer_norm": False,
    "word_embed_proj_dim": None,  # None: hidden_size
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "num_attention_heads": 12,
    "activation_function": "relu",
    "layerdrop": 0.0,
    "init_std": 0.02,
    "enable_bias": True,
    "layer_norm_elementwise_affine": True,
    "tie_word_embeddings": True,
}


def config_from(raw: Mapping[str, Any]) -> Config:
    """The config of a model from the content of its config.json.

    Raises:
      ValueError: a value that is wrong, or that our transformer cannot express.
    """
    c = read(raw, DEFAULTS)
    require(
        "our transformer",
        layerdrop=(c["layerdrop"], 0.0),
        layer_norm_elementwise_affine=(c["layer_norm_elementwise_affine"], True),
        tie_word_embeddings=(c["tie_word_embeddings"], True),
    )
    before, width = c["do_layer_norm_before"], c["word_embed_proj_dim"]
    activation = c["activation_function"]
    return Config(
        vocab_size=c["vocab_size"],
        context_length=c["max_position_embeddings"],
        dim=c["hidden_size"],
        embed_dim=0 if width in (None, c["hidden_size"]) else width,
        num_layers=c["num_hidden_layers"],
        num_heads=c["num_attention_heads"],
        mlp_dim=0 if c["ffn_dim"] == 4 * c["hidden_size"] else c["ffn_dim"],
        activation=names_.lookup("activation_function", activation, decoder.PLAIN),
        norm_order="pre" if before else "post",
        final_norm=before and not c["_remove_final_layer_norm"],
        position_offset=2,
        bias=c["enable_bias"],
        dropout=c["dropout"],
        attention_dropout=decoder.rate_from(c["attention_dropout"], c["dropout"]),
        init_std=c["init_std"],
    )


def config_to(config: Config) -> dict[str, Any]:
    """The content of config.json. It names no special tokens: those are the tokenizer's.

    Raises:
      ValueError: an OPT cannot have a value of `config`.
    """
    raw = {
        "model_type": "opt",
        "architectures": ["OPTForCausalLM"],
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.num_layers,
        "ffn_dim": config.mlp_width,
        "max_position_embeddings": config.context_length,
        "do_layer_norm_before": config.norm_order == "pre",
        "_remove_final_layer_norm": config.norm_order == "pre" and not config.final_norm,
        "word_embed_proj_dim": config.embed_width,
        "dropout": config.dropout,
        "attention_dropout": config.attention_rate,
        "num_attention_heads": config.num_heads,
        "activation_function": decoder.activation_to(config, decoder.PLAIN, "OPT"),
        "layerdrop": 0.0,
        "init_std": config.init_std,
        "enable_bias": config.bias,
        "layer_norm_elementwise_affine": True,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return decoder.held("an OPT file", config, raw, config_from)


def table(config: Config, names: Iterable[str] | None = None) -> Table:
    """What lies where.

    Raises:
      ValueError: an OPT cannot have a value of `config`.
    """
    config_to(config)
    D, E, V = config.dim, config.embed_width, config.vocab_size
    base = prefix(names, "model.") + "decoder"
    layer = f"{base}.layers.{{}}"
    projections = ("q_proj", "k_proj", "v_proj", "out_proj")
    positions = (config.context_length + config.position_offset, D)
    rows = [
        Row(f"{base}.embed_tokens.weight", ("embed/embedding",), (V, E)),
        Row(f"{base}.embed_positions.weight", ("positions/embedding",), positions),
        *decoder.attention(config, f"{layer}.self_attn", projections),
        *decoder.norm(f"{layer}.self_attn_layer_norm", "blocks/attention_norm", D),
        *decoder.feed_forward(config, up=f"{layer}.fc1", down=f"{layer}.fc2"),
        *decoder.norm(f"{layer}.final_layer_norm", "blocks/mlp_norm", D),
    ]
    if config.final_norm:
        rows += decoder.norm(f"{base}.final_layer_norm", "final_norm", D)
    if config.embed_dim:
        rows += dense(f"{base}.project_in", "project_in/kernel", (E, D), 1)
        rows += dense(f"{base}.project_out", "project_out/kernel", (D, E), 1)
    copies = {"lm_head.weight": f"{base}.embed_tokens.weight"}
    return Table(tuple(rows), config.num_layers, copies=copies)
