"""Radford et al. 2019, GPT-2: files of transformers' GPT2LMHeadModel, in both directions.

Published files name tensors with or without "transformer." in front. Their `Conv1D` kernels are
(in, out) like ours; `c_attn` holds queries, keys and values side by side. The head is the
embedding table and not stored, unless the config unties it. The masks `attn.bias` and
`attn.masked_bias` of older files are constants and ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nn import names as names_
from nn.families.transformer import Config
from nn.pretrained import decoder
from nn.pretrained.table import Row, Table, dense, prefix, read, require

MODEL_TYPES = ("gpt2",)
FAMILY = "transformer"
# What the format means when config.json leaves a key out.
DEFAULTS: Mapping[str, Any] = {
    "model_type": "gpt2",
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": None,  # None: 4 * n_embd
    "activation_function": "gelu_new",
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
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
        scale_attn_weights=(c["scale_attn_weights"], True),
        scale_attn_by_inverse_layer_idx=(c["scale_attn_by_inverse_layer_idx"], False),
        add_cross_attention=(c["add_cross_attention"], False),
        embd_pdrop=(c["embd_pdrop"], c["resid_pdrop"]),
    )
    return Config(
        vocab_size=c["vocab_size"],
        context_length=c["n_positions"],
        dim=c["n_embd"],
        num_layers=c["n_layer"],
        num_heads=c["n_head"],
        mlp_dim=0 if c["n_inner"] is None else c["n_inner"],
        activation=names_.lookup("activation_function", c["activation_function"], decoder.PLAIN),
        norm_eps=c["layer_norm_epsilon"],
        tie_embeddings=c["tie_word_embeddings"],
        dropout=c["resid_pdrop"],
        attention_dropout=decoder.rate_from(c["attn_pdrop"], c["resid_pdrop"]),
        init_std=c["initializer_range"],
    )


def config_to(config: Config) -> dict[str, Any]:
    """The content of config.json. It names no special tokens: those are the tokenizer's.

    Raises:
      ValueError: a GPT-2 cannot have a value of `config`.
    """
    raw = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": config.vocab_size,
        "n_positions": config.context_length,
        "n_ctx": config.context_length,
        "n_embd": config.dim,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.mlp_dim or None,
        "activation_function": decoder.activation_to(config, decoder.PLAIN, "GPT-2"),
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.attention_rate,
        "layer_norm_epsilon": config.norm_eps,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return decoder.held("a GPT-2 file", config, raw, config_from)


def table(config: Config, names: Iterable[str] | None = None) -> Table:
    """What lies where; older files leave "transformer." out.

    Raises:
      ValueError: a GPT-2 cannot have a value of `config`.
    """
    config_to(config)
    base = prefix(names, "transformer.")
    D, V = config.dim, config.vocab_size
    rows = [
        Row(f"{base}wte.weight", ("embed/embedding",), (V, D)),
        Row(f"{base}wpe.weight", ("positions/embedding",), (config.context_length, D)),
        *decoder.gpt_layers(config, f"{base}h.{{}}"),
        *decoder.norm(f"{base}ln_f", "final_norm", D),
    ]
    if not config.tie_embeddings:
        rows += dense("lm_head", "output/kernel", (D, V), 1)
    copies = {"lm_head.weight": f"{base}wte.weight"} if config.tie_embeddings else {}
    masks = r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias"
    return Table(tuple(rows), config.num_layers, masks, copies)
