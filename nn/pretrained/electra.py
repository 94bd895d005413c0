"""Clark et al. 2020, ELECTRA: files of transformers' Electra models, in both directions.

As BERT's, but that the tables may be narrower than the blocks, and for the heads: that of the
generator predicts tokens, that of the discriminator finds those that were replaced.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nn.families.bert import Config
from nn.pretrained import encoder
from nn.pretrained.encoder import linear
from nn.pretrained.table import Table, read, require

MODEL_TYPES = ("electra",)
FAMILY = "bert"
DEFAULTS = {
    "model_type": "electra",
    **encoder.DEFAULTS,
    "embedding_size": 128,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
}
HEADS = {
    "ElectraModel": "none",
    "ElectraForMaskedLM": "masked_token",
    "ElectraForPreTraining": "replaced_token",
    "ElectraForSequenceClassification": "class",
}


def config_from(raw: Mapping[str, Any]) -> Config:
    """The config of a model from the content of its config.json.

    Raises:
      ValueError: a value that is wrong, or that our encoder cannot express.
    """
    c = read(raw, DEFAULTS)
    fields = encoder.fields_from(c) | {"pad_token": encoder.padding(raw, 0)}
    fields |= encoder.head_from(c, HEADS, "none")
    wide = c["embedding_size"] == c["hidden_size"]
    return Config(
        **fields,
        embed_dim=0 if wide else c["embedding_size"],
        head_activation=_head_activation(fields["head"], fields["activation"]),
        pool_activation="gelu",
    )


def _head_activation(head: str, activation: str) -> str:
    """That of the discriminator is the encoder's; that of the generator always the same."""
    return activation if head == "replaced_token" else "gelu"


def config_to(config: Config) -> dict[str, Any]:
    """The content of config.json. It names no special tokens but that of padding.

    Raises:
      ValueError: an ELECTRA cannot have a value of `config`.
    """
    expected = _head_activation(config.head, config.activation)
    require(
        "an ELECTRA file",
        position_offset=(config.position_offset, 0),
        skip_padding=(config.skip_padding, False),
        head_activation=(config.head_activation, expected),
        pool_activation=(config.pool_activation, "gelu"),
    )
    head = encoder.head_to(config, HEADS, "ELECTRA")
    width = {"embedding_size": config.embed_width}
    return {"model_type": "electra", **head, **encoder.fields_to(config, "ELECTRA"), **width}


def table(config: Config, names: Iterable[str] | None = None) -> Table:
    """What lies where. Raises ValueError where an ELECTRA cannot have a value of `config`."""
    config_to(config)
    base, D = encoder.base_of(config, names, "electra."), config.dim
    rows = encoder.embeddings(base, config)
    if config.embed_dim:
        rows += linear(f"{base}embeddings_project", "project_in", config.embed_dim, D)
    rows += encoder.blocks(f"{base}encoder.layer.{{}}", config, encoder.BERT_LAYER)
    generator, discriminator = "generator_predictions", "discriminator_predictions"
    if config.predicts_tokens:
        parts = (f"{generator}.dense", f"{generator}.LayerNorm", "generator_lm_head.bias")
        rows += encoder.token_head(config, *parts)
    if config.head == "replaced_token":
        rows += linear(f"{discriminator}.dense", "transform", D, D)
        rows += linear(f"{discriminator}.dense_prediction", "score", D, 1)
    if config.head == "class":
        rows += linear("classifier.dense", "pooler", D, D)
        rows += linear("classifier.out_proj", "classifier", D, config.num_classes)
    copies = {"generator_lm_head.weight": f"{base}embeddings.word_embeddings.weight"}
    heads = rf"({generator}|generator_lm_head|{discriminator}|classifier)\..*"
    return encoder.table(config, rows, heads, copies)
