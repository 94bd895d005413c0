"""Raffel et al. 2020, T5: files of transformers' T5ForConditionalGeneration, in both directions.

The first block of a stack holds the biases by distance of all. Version 1.0 has one table of tokens,
which is the head too, on states that are divided by sqrt(d_model). In version 1.1 (Flan-T5 also)
the states are as they are and the head is a matrix of its own; older configs say
tie_word_embeddings=false for both, newer ones scale_decoder_outputs=false, whatever they say of the
tie. A file of this kind without `lm_head.weight` is one whose head is still equal to the table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from nn import activations
from nn import names as names_
from nn.families.seq2seq_transformer import Config
from nn.pretrained.encoder_decoder import require_same
from nn.pretrained.table import Row, Table, dense, read

MODEL_TYPES = ("t5",)
FAMILY = "seq2seq_transformer"
# What the format means when config.json leaves a key out.
DEFAULTS: Mapping[str, Any] = {
    "model_type": "t5",
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_decoder_layers": None,  # None: num_layers
    "num_heads": 8,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "dropout_rate": 0.1,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
    "n_positions": 512,
    "decoder_start_token_id": 0,
    "tie_word_embeddings": True,
    "scale_decoder_outputs": None,  # None: as they are tied
}
# Theirs -> ours. "gated-gelu" is the one whose name says less than it means.
ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "silu": "silu",
    "gated-gelu": "geglu_tanh",
    "gated-relu": "reglu",
    "gated-silu": "swiglu",
}


def config_from(raw: Mapping[str, Any]) -> Config:
    """The config of a model from the content of its config.json.

    Raises:
      ValueError: a value that is wrong, or that our model cannot express.
    """
    c = read(raw, DEFAULTS)
    scaled, rate = c["scale_decoder_outputs"], c["dropout_rate"]
    scaled = c["tie_word_embeddings"] if scaled is None else scaled
    return Config(
        vocab_size=c["vocab_size"],
        context_length=c["n_positions"],
        dim=c["d_model"],
        encoder_layers=c["num_layers"],
        decoder_layers=c["num_decoder_layers"] or c["num_layers"],
        num_heads=c["num_heads"],
        head_dim=c["d_kv"],
        mlp_dim=c["d_ff"],
        scale_embeddings=False,
        activation=names_.lookup("feed_forward_proj", c["feed_forward_proj"], ACTIVATIONS),
        norm="rms",
        norm_eps=c["layer_norm_epsilon"],
        norm_order="pre",
        final_norm=True,
        position="relative",
        relative_buckets=c["relative_attention_num_buckets"],
        relative_distance=c["relative_attention_max_distance"],
        bias=False,
        attention_scale=1.0,
        tie_embeddings=scaled,
        scale_head=scaled,
        start_token=c["decoder_start_token_id"],
        **dict.fromkeys(("dropout", "attention_dropout", "mlp_dropout", "output_dropout"), rate),
        embed_std=1.0,
    )


def config_to(config: Config) -> dict[str, Any]:
    """The content of config.json.

    Raises:
      ValueError: a T5 cannot have a value of `config`.
    """
    theirs = {ours: name for name, ours in ACTIVATIONS.items()}
    raw = {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "vocab_size": config.vocab_size,
        "n_positions": config.context_length,
        "d_model": config.dim,
        "d_kv": config.encoder.head_dim,
        "d_ff": config.encoder.mlp_dim,
        "num_layers": config.encoder_layers,
        "num_decoder_layers": config.decoder_layers,
        "num_heads": config.num_heads,
        "relative_attention_num_buckets": config.relative_buckets,
        "relative_attention_max_distance": config.relative_distance,
        "dropout_rate": config.dropout,
        "layer_norm_epsilon": config.norm_eps,
        "feed_forward_proj": names_.lookup("activation of T5", config.activation, theirs),
        "decoder_start_token_id": config.start_token,
        "tie_word_embeddings": config.tie_embeddings,
        "scale_decoder_outputs": config.tie_embeddings,
        "is_encoder_decoder": True,
    }
    require_same("a T5 file", config, config_from(raw))
    return raw


def table(config: Config, names: Iterable[str] | None = None) -> Table:
    """What lies where.

    Raises:
      ValueError: a T5 cannot have a value of `config`.
    """
    config_to(config)
    V, D = config.vocab_size, config.dim
    rows = [Row("shared.weight", ("embed/embedding",), (V, D))]
    for side in ("encoder", "decoder"):
        rows += _side(config, side)
    tied = [f"{side}.embed_tokens.weight" for side in ("encoder", "decoder")]
    if config.tie_embeddings:
        tied.append("lm_head.weight")
    else:
        own = names is None or "lm_head.weight" in set(names)
        rows += dense("lm_head" if own else "shared", "output/kernel", (D, V), 1)
    unused = r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"
    return Table(tuple(rows), 0, unused, dict.fromkeys(tied, "shared.weight"))


def _side(config: Config, side: str) -> list[Row]:
    """Rows of one of the two stacks, whose blocks hold their parts as layers by number."""
    spec = config.encoder if side == "encoder" else config.decoder
    D, H, K, F = config.dim, spec.heads, spec.head_dim, spec.mlp_dim
    parts = [("SelfAttention", "attention"), ("EncDecAttention", "cross")][: 1 + spec.cross]
    block, blocks, stacked = f"{side}.block.{{}}.layer", f"{side}/blocks", []
    for number, (theirs, ours) in enumerate(parts):
        for x, y in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "out")):
            shape, inputs = ((D, H, K), 1) if x != "o" else ((H, K, D), 2)
            path = f"{blocks}/{ours}/{y}_kernel"
            stacked += dense(f"{block}.{number}.{theirs}.{x}", path, shape, inputs)
        path = f"{blocks}/{ours}_norm/scale"
        stacked.append(Row(f"{block}.{number}.layer_norm.weight", (path,), (D,)))
    last = f"{block}.{len(parts)}"
    gated = activations.is_gated(config.activation)
    wide = (("wi_0", "gate"), ("wi_1", "up")) if gated else (("wi", "up"),)
    for theirs, ours in wide:
        path = f"{blocks}/mlp/{ours}/kernel"
        stacked += dense(f"{last}.DenseReluDense.{theirs}", path, (D, F), 1)
    stacked += dense(f"{last}.DenseReluDense.wo", f"{blocks}/mlp/down/kernel", (F, D), 1)
    stacked.append(Row(f"{last}.layer_norm.weight", (f"{blocks}/mlp_norm/scale",), (D,)))
    biases = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return [
        Row(biases, (f"{side}/relative",), (config.relative_buckets, H)),
        *(dataclasses.replace(row, layers=range(spec.layers)) for row in stacked),
        Row(f"{side}.final_layer_norm.weight", (f"{side}/final_norm/scale",), (D,)),
    ]
