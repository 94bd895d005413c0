"""Lewis et al. 2020, BART: files of transformers' BartForConditionalGeneration, in both directions.

Learned positions begin in row 2 of their tables; tokens plus positions are normed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nn.families.seq2seq_transformer import Config
from nn.pretrained import encoder_decoder
from nn.pretrained.table import Table, read, require

MODEL_TYPES = ("bart",)
FAMILY = "seq2seq_transformer"
# What the format means when config.json leaves a key out.
DEFAULTS: Mapping[str, Any] = {
    **encoder_decoder.DEFAULTS,
    "model_type": "bart",
    "vocab_size": 50265,
    "decoder_start_token_id": 2,
    "normalize_embedding": True,
    "static_position_embeddings": False,
}


def config_from(raw: Mapping[str, Any]) -> Config:
    """The config of a model from the content of its config.json.

    Raises:
      ValueError: a value that is wrong, or that our model cannot express.
    """
    c = read(raw, DEFAULTS)
    require(
        "a BART",
        normalize_embedding=(c["normalize_embedding"], True),
        static_position_embeddings=(c["static_position_embeddings"], False),
    )
    fields = encoder_decoder.fields_from(c)
    return Config(**fields, embed_norm=True, position="learned", position_offset=2)


def config_to(config: Config) -> dict[str, Any]:
    """The content of config.json.

    Raises:
      ValueError: a BART cannot have a value of `config`.
    """
    raw = encoder_decoder.fields_to(config, "BART") | {
        "model_type": "bart",
        "architectures": ["BartForConditionalGeneration"],
    }
    encoder_decoder.require_same("a BART file", config, config_from(raw))
    return raw


def table(config: Config, names: Iterable[str] | None = None) -> Table:
    """What lies where.

    Raises:
      ValueError: a BART cannot have a value of `config`.
    """
    config_to(config)
    return encoder_decoder.table(config, names)
