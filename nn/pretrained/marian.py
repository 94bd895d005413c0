"""Junczys-Dowmunt et al. 2018, Marian: files of transformers' MarianMTModel, in both directions.

Sinusoidal positions, which older files hold all the same, and which are ignored. Their padding is
what starts the decoder, and the last token of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nn.families.seq2seq_transformer import Config
from nn.pretrained import encoder_decoder
from nn.pretrained.table import Table, read, require

MODEL_TYPES = ("marian",)
FAMILY = "seq2seq_transformer"
# What the format means when config.json leaves a key out.
DEFAULTS: Mapping[str, Any] = {
    **encoder_decoder.DEFAULTS,
    "model_type": "marian",
    "vocab_size": 58101,
    "decoder_vocab_size": None,  # None: vocab_size
    "decoder_start_token_id": 58100,
    "share_encoder_decoder_embeddings": True,
    "normalize_embedding": False,
    "static_position_embeddings": True,
}
POSITIONS = r"(model\.)?(encoder|decoder)\.embed_positions\.weight"


def config_from(raw: Mapping[str, Any]) -> Config:
    """The config of a model from the content of its config.json.

    Raises:
      ValueError: a value that is wrong, or that our model cannot express.
    """
    c = read(raw, DEFAULTS)
    size = c["vocab_size"]
    require(
        "our seq2seq_transformer",
        share_encoder_decoder_embeddings=(c["share_encoder_decoder_embeddings"], True),
        decoder_vocab_size=(c["decoder_vocab_size"] or size, size),
        normalize_embedding=(c["normalize_embedding"], False),
        static_position_embeddings=(c["static_position_embeddings"], True),
    )
    return Config(**encoder_decoder.fields_from(c), position="sinusoidal")


def config_to(config: Config) -> dict[str, Any]:
    """The content of config.json.

    Raises:
      ValueError: a Marian cannot have a value of `config`.
    """
    raw = encoder_decoder.fields_to(config, "Marian") | {
        "model_type": "marian",
        "architectures": ["MarianMTModel"],
        "decoder_vocab_size": config.vocab_size,
        "share_encoder_decoder_embeddings": True,
        "static_position_embeddings": True,
        "pad_token_id": config.start_token,
    }
    encoder_decoder.require_same("a Marian file", config, config_from(raw))
    return raw


def table(config: Config, names: Iterable[str] | None = None) -> Table:
    """What lies where.

    Raises:
      ValueError: a Marian cannot have a value of `config`.
    """
    config_to(config)
    return encoder_decoder.table(config, names, ignored=POSITIONS)
