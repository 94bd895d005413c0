"""Devlin et al. 2018, BERT: files of transformers' Bert models, in both directions.

`bert.` stands before the encoder's tensors but in files of the encoder alone. The head of tokens is
the table of tokens, `cls.predictions.decoder.weight` at most a copy of it, and its bias
`cls.predictions.bias`. Older files call the parameters of norms gamma and beta.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nn.families.bert import Config
from nn.pretrained import encoder
from nn.pretrained.encoder import linear
from nn.pretrained.table import Table, read, require

MODEL_TYPES = ("bert",)
FAMILY = "bert"
DEFAULTS = {"model_type": "bert", **encoder.DEFAULTS}
HEADS = {
    "BertModel": "pooled",
    "BertForMaskedLM": "masked_token",
    "BertForPreTraining": "masked_token_and_next_sentence",
    "BertForSequenceClassification": "class",
}


def config_from(raw: Mapping[str, Any]) -> Config:
    """The config of a model from the content of its config.json.

    Raises:
      ValueError: a value that is wrong, or that our encoder cannot express.
    """
    c = read(raw, DEFAULTS)
    fields = encoder.fields_from(c) | {"pad_token": encoder.padding(raw, 0)}
    fields |= encoder.head_from(c, HEADS, "pooled")
    return Config(**fields, head_activation=fields["activation"])


def config_to(config: Config) -> dict[str, Any]:
    """The content of config.json. It names no special tokens but that of padding.

    Raises:
      ValueError: a BERT cannot have a value of `config`.
    """
    require(
        "a BERT file",
        embed_dim=(config.embed_width, config.dim),
        position_offset=(config.position_offset, 0),
        skip_padding=(config.skip_padding, False),
        head_activation=(config.head_activation, config.activation),
        pool_activation=(config.pool_activation, "tanh"),
    )
    head = encoder.head_to(config, HEADS, "BERT")
    return {"model_type": "bert", **head, **encoder.fields_to(config, "BERT")}


def table(config: Config, names: Iterable[str] | None = None) -> Table:
    """What lies where. Raises ValueError where a BERT cannot have a value of `config`."""
    config_to(config)
    base, D = encoder.base_of(config, names, "bert."), config.dim
    rows = encoder.embeddings(base, config)
    rows += encoder.blocks(f"{base}encoder.layer.{{}}", config, encoder.BERT_LAYER)
    if config.predicts_tokens:
        head = "cls.predictions"
        transform = f"{head}.transform"
        rows += encoder.token_head(
            config, f"{transform}.dense", f"{transform}.LayerNorm", f"{head}.bias"
        )
    if config.pools:
        rows += linear(f"{base}pooler.dense", "pooler", D, D)
    if config.head == "masked_token_and_next_sentence":
        rows += linear("cls.seq_relationship", "next_sentence", D, 2)
    if config.head == "class":
        rows += linear("classifier", "classifier", D, config.num_classes)
    copies = {
        "cls.predictions.decoder.weight": f"{base}embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }
    return encoder.table(config, rows, r"(bert\.)?pooler\..*|cls\..*|classifier\..*", copies)
