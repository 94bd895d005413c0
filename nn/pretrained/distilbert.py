"""Sanh et al. 2019, DistilBERT: files of transformers' DistilBert models, in both directions.

A BERT without types and pooler, under names of its own. Its dropout spares what attention adds to
the residual; ours does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nn import names as names_
from nn.families.bert import Config
from nn.pretrained import encoder
from nn.pretrained.encoder import linear
from nn.pretrained.table import Table, read, require

MODEL_TYPES = ("distilbert",)
FAMILY = "bert"
# What the format means when config.json leaves a key out.
DEFAULTS: Mapping[str, Any] = {
    "model_type": "distilbert",
    "architectures": None,
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "sinusoidal_pos_embds": False,
    "n_layers": 6,
    "n_heads": 12,
    "dim": 768,
    "hidden_dim": 3072,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "activation": "gelu",
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
    "id2label": None,
    "num_labels": 2,
}
HEADS = {
    "DistilBertModel": "none",
    "DistilBertForMaskedLM": "masked_token",
    "DistilBertForSequenceClassification": "class",
}
LAYER = (
    ("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"),
    ("sa_layer_norm", "output_layer_norm"),
    ("ffn.lin1", "ffn.lin2"),
)


def config_from(raw: Mapping[str, Any]) -> Config:
    """The config of a model from the content of its config.json.

    Raises:
      ValueError: a value that is wrong, or that our encoder cannot express.
    """
    c = read(raw, DEFAULTS)
    require(
        "our encoder",
        sinusoidal_pos_embds=(c["sinusoidal_pos_embds"], False),
        tie_word_embeddings=(c["tie_word_embeddings"], True),
    )
    activation = names_.lookup("activation", c["activation"], encoder.ACTIVATIONS)
    return Config(
        **encoder.head_from(c, HEADS, "none"),
        vocab_size=c["vocab_size"],
        context_length=c["max_position_embeddings"],
        token_types=0,
        pad_token=encoder.padding(raw, 0),
        dim=c["dim"],
        num_layers=c["n_layers"],
        num_heads=c["n_heads"],
        mlp_dim=c["hidden_dim"],
        activation=activation,
        head_activation=activation,
        pool_activation="relu",
        dropout=c["dropout"],
        attention_dropout=c["attention_dropout"],
        init_std=c["initializer_range"],
    )


def config_to(config: Config) -> dict[str, Any]:
    """The content of config.json. It names no special tokens but that of padding.

    Raises:
      ValueError: a DistilBERT cannot have a value of `config`.
    """
    require(
        "a DistilBERT file",
        **{n: (getattr(config, n), wanted) for n, wanted in encoder.ONLY.items()},
        embed_dim=(config.embed_width, config.dim),
        token_types=(config.token_types, 0),
        position_offset=(config.position_offset, 0),
        skip_padding=(config.skip_padding, False),
        norm_eps=(config.norm_eps, 1e-12),
        head_activation=(config.head_activation, config.activation),
        pool_activation=(config.pool_activation, "relu"),
    )
    return {
        "model_type": "distilbert",
        **encoder.head_to(config, HEADS, "DistilBERT"),
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "sinusoidal_pos_embds": False,
        "n_layers": config.num_layers,
        "n_heads": config.num_heads,
        "dim": config.dim,
        "hidden_dim": config.mlp_width,
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "activation": encoder.activation_to(config.activation, "DistilBERT"),
        "initializer_range": config.init_std,
        "pad_token_id": None if config.pad_token < 0 else config.pad_token,
        "tie_word_embeddings": True,
    }


def table(config: Config, names: Iterable[str] | None = None) -> Table:
    """What lies where. Raises ValueError where a DistilBERT cannot have a value of `config`."""
    config_to(config)
    base, D = encoder.base_of(config, names, "distilbert."), config.dim
    rows = encoder.embeddings(base, config)
    rows += encoder.blocks(f"{base}transformer.layer.{{}}", config, LAYER)
    if config.predicts_tokens:
        parts = ("vocab_transform", "vocab_layer_norm", "vocab_projector.bias")
        rows += encoder.token_head(config, *parts)
    if config.head == "class":
        rows += linear("pre_classifier", "pooler", D, D)
        rows += linear("classifier", "classifier", D, config.num_classes)
    copies = {"vocab_projector.weight": f"{base}embeddings.word_embeddings.weight"}
    return encoder.table(config, rows, r"(vocab_\w+|pre_classifier|classifier)\..*", copies)
