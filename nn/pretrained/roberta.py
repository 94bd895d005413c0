"""Liu et al. 2019, RoBERTa: files of transformers' Roberta models, in both directions.

As BERT's, but for the heads. Positions are counted past padding, from pad_token_id + 1 on:
max_position_embeddings counts the rows before that too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nn.families.bert import Config
from nn.pretrained import encoder
from nn.pretrained.encoder import linear
from nn.pretrained.table import Table, read, require

MODEL_TYPES = ("roberta",)
FAMILY = "bert"
DEFAULTS = {"model_type": "roberta", **encoder.DEFAULTS, "vocab_size": 50265}
HEADS = {
    "RobertaModel": "pooled",
    "RobertaForMaskedLM": "masked_token",
    "RobertaForSequenceClassification": "class",
}


def config_from(raw: Mapping[str, Any]) -> Config:
    """The config of a model from the content of its config.json.

    Raises:
      ValueError: a value that is wrong, or that our encoder cannot express.
    """
    c = read(raw, DEFAULTS)
    fields = encoder.fields_from(c) | encoder.head_from(c, HEADS, "pooled")
    pad = encoder.padding(raw, 1)
    offset = pad + 1
    fields["context_length"] -= offset
    return Config(**fields, pad_token=pad, position_offset=offset, skip_padding=True)


def config_to(config: Config) -> dict[str, Any]:
    """The content of config.json. It names no special tokens but that of padding.

    Raises:
      ValueError: a RoBERTa cannot have a value of `config`.
    """
    require(
        "a RoBERTa file",
        embed_dim=(config.embed_width, config.dim),
        skip_padding=(config.skip_padding, True),
        pad_token=(config.pad_token, config.position_offset - 1),
        head_activation=(config.head_activation, "gelu"),
        pool_activation=(config.pool_activation, "tanh"),
    )
    head = encoder.head_to(config, HEADS, "RoBERTa")
    rows = {"max_position_embeddings": config.context_length + config.position_offset}
    return {"model_type": "roberta", **head, **encoder.fields_to(config, "RoBERTa"), **rows}


def table(config: Config, names: Iterable[str] | None = None) -> Table:
    """What lies where. Raises ValueError where a RoBERTa cannot have a value of `config`."""
    config_to(config)
    base, D = encoder.base_of(config, names, "roberta."), config.dim
    rows = encoder.embeddings(base, config)
    rows += encoder.blocks(f"{base}encoder.layer.{{}}", config, encoder.BERT_LAYER)
    if config.predicts_tokens:
        rows += encoder.token_head(config, "lm_head.dense", "lm_head.layer_norm", "lm_head.bias")
    if config.head == "pooled":
        rows += linear(f"{base}pooler.dense", "pooler", D, D)
    if config.head == "class":
        rows += linear("classifier.dense", "pooler", D, D)
        rows += linear("classifier.out_proj", "classifier", D, config.num_classes)
    copies = {
        "lm_head.decoder.weight": f"{base}embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    }
    heads = r"(roberta\.)?pooler\..*|lm_head\..*|classifier\..*"
    return encoder.table(config, rows, heads, copies)
