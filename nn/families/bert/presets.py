"""The published encoders by name, with the head that they were trained with."""

from __future__ import annotations

import dataclasses

from nn.families.bert.config import Config


def _large(config: Config) -> Config:
    return dataclasses.replace(config, dim=1024, num_layers=24, num_heads=16, mlp_dim=4096)


_BERT = Config(
    pad_token=0,
    mlp_dim=3072,
    dropout=0.1,
    attention_dropout=0.1,
    head="masked_token_and_next_sentence",
)
# Positions are counted from 2, past padding, whose token is 1.
_ROBERTA = dataclasses.replace(
    _BERT,
    vocab_size=50265,
    token_types=1,
    pad_token=1,
    position_offset=2,
    skip_padding=True,
    norm_eps=1e-5,
    head="masked_token",
)
_ELECTRA = dataclasses.replace(_BERT, head="replaced_token", pool_activation="gelu")
_MODERN = Config(
    vocab_size=50368,
    context_length=8192,
    token_types=0,
    pad_token=50283,
    num_layers=22,
    mlp_dim=1152,
    activation="geglu",
    norm_order="pre",
    norm_eps=1e-5,
    norm_bias=False,
    bias=False,
    position="rotary",
    rope_theta=160000.0,
    rope_local_theta=10000.0,
    windows=(0, 65, 65),
    head_bias=False,
    pool="mean",
    pool_activation="gelu",
    pool_norm=True,
)

PRESETS = {
    "bert-base": _BERT,
    "bert-large": _large(_BERT),
    "roberta-base": _ROBERTA,
    "roberta-large": _large(_ROBERTA),
    "distilbert-base": dataclasses.replace(
        _BERT, token_types=0, num_layers=6, pool_activation="relu", head="masked_token"
    ),
    "electra-small": dataclasses.replace(
        _ELECTRA, dim=256, num_heads=4, mlp_dim=1024, embed_dim=128
    ),
    "electra-base": _ELECTRA,
    "electra-large": _large(_ELECTRA),
    "modernbert-base": _MODERN,
    "modernbert-large": dataclasses.replace(
        _MODERN, dim=1024, num_layers=28, num_heads=16, mlp_dim=2624
    ),
}
