"""What the files of BART and Marian have in common: keys of config.json, names of tensors.

Post-norm stacks and a head with one table of tokens for all three. Kernels are (out, in) with the
heads merged. `final_logits_bias` is our bias of the head: theirs does not learn. Files of a model
without a head leave it and "model." out; then it is zero.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from nn import names as names_
from nn.families.seq2seq_transformer import Config
from nn.pretrained.table import Row, Table, dense, prefix, require

# What both formats mean when config.json leaves a key out.
DEFAULTS: Mapping[str, Any] = {
    "max_position_embeddings": 1024,
    "encoder_layers": 12,
    "encoder_ffn_dim": 4096,
    "encoder_attention_heads": 16,
    "decoder_layers": 12,
    "decoder_ffn_dim": 4096,
    "decoder_attention_heads": 16,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
    "activation_function": "gelu",
    "d_model": 1024,
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "init_std": 0.02,
    "scale_embedding": False,
    "tie_word_embeddings": True,
    # Keys of older files.
    "add_final_layer_norm": False,
    "normalize_before": False,
}
# Theirs -> ours; of two names for one function the first is written.
ACTIVATIONS = {
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "gelu_new": "gelu_tanh",
    "tanh": "tanh",
}
# What a file says nothing about: how a model is begun and how it is computed.
OF_A_RUN = ("init_std", "embed_std", "remat", "remat_names", "scan_unroll")


def fields_from(c: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of our Config from a whole config.json.

    Raises:
      ValueError: a value that our model cannot express.
    """
    zeros = dict.fromkeys(("encoder_layerdrop", "decoder_layerdrop"), 0.0)
    no = dict.fromkeys(("add_final_layer_norm", "normalize_before"), False)
    fixed = zeros | no | {"tie_word_embeddings": True}
    wanted = {key: (c[key], value) for key, value in fixed.items()}
    require("our seq2seq_transformer", **wanted)
    return {
        "vocab_size": c["vocab_size"],
        "context_length": c["max_position_embeddings"],
        "dim": c["d_model"],
        "encoder_layers": c["encoder_layers"],
        "decoder_layers": c["decoder_layers"],
        "num_heads": c["encoder_attention_heads"],
        "decoder_heads": c["decoder_attention_heads"],
        "mlp_dim": c["encoder_ffn_dim"],
        "decoder_mlp_dim": c["decoder_ffn_dim"],
        "scale_embeddings": c["scale_embedding"],
        "activation": names_.lookup("activation_function", c["activation_function"], ACTIVATIONS),
        "head_bias": True,
        "start_token": c["decoder_start_token_id"],
        "dropout": c["dropout"],
        "attention_dropout": c["attention_dropout"],
        "mlp_dropout": c["activation_dropout"],
        "init_std": c["init_std"],
    }


def fields_to(config: Config, kind: str) -> dict[str, Any]:
    """The same keys of a config.json of a kind of model, such as "BART"."""
    theirs = {ours: name for name, ours in reversed(ACTIVATIONS.items())}
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "d_model": config.dim,
        "num_hidden_layers": config.encoder_layers,
        "encoder_layers": config.encoder_layers,
        "decoder_layers": config.decoder_layers,
        "encoder_attention_heads": config.encoder.heads,
        "decoder_attention_heads": config.decoder.heads,
        "encoder_ffn_dim": config.encoder.mlp_dim,
        "decoder_ffn_dim": config.decoder.mlp_dim,
        "scale_embedding": config.scale_embeddings,
        "activation_function": names_.lookup(f"activation of {kind}", config.activation, theirs),
        "tie_word_embeddings": config.tie_embeddings,
        "decoder_start_token_id": config.start_token,
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "activation_dropout": config.mlp_dropout,
        "init_std": config.init_std,
        "is_encoder_decoder": True,
    }


def require_same(what: str, config: Config, read_again: Config) -> None:
    """Raises ValueError for the first field that a file of `config` would not give back."""
    for field in dataclasses.fields(Config):
        if field.name not in OF_A_RUN:
            pair = (getattr(_explicit(c), field.name) for c in (config, read_again))
            require(what, **{field.name: tuple(pair)})


def _explicit(config: Config) -> Config:
    """The same model with the sizes that 0 stands for."""
    encoder, decoder = config.encoder, config.decoder
    return dataclasses.replace(
        config,
        decoder_heads=decoder.heads,
        head_dim=encoder.head_dim if encoder.head_dim == decoder.head_dim else 0,
        mlp_dim=encoder.mlp_dim,
        decoder_mlp_dim=decoder.mlp_dim,
    )


@dataclasses.dataclass(frozen=True)
class _Zeros(Row):
    """A leaf of zeros that is not in the file, of the dtype of a tensor that is.

    like: shape of that tensor.
    """

    like: tuple[int, ...] = ()

    @property
    def file_shape(self) -> tuple[int, ...]:
        return self.like

    def split(self, tensor: np.ndarray) -> list[np.ndarray]:
        return [np.zeros(self.shape, tensor.dtype)]


def table(config: Config, names: Iterable[str] | None = None, ignored: str = "") -> Table:
    """What lies where. ignored: see `nn.pretrained.table.Table`."""
    found = None if names is None else set(names)
    base = prefix(found, "model.")
    V, D = config.vocab_size, config.dim
    shared, bias = f"{base}shared.weight", "final_logits_bias"
    rows = [Row(shared, ("embed/embedding",), (V, D))]
    for side in ("encoder", "decoder"):
        rows += _side(config, base, side)
    if found is None or bias in found:
        rows.append(Row(bias, ("head_bias",), (V,), (1, V)))
    else:
        rows.append(_Zeros(shared, ("head_bias",), (V,), like=(V, D)))
    tied = (f"{base}encoder.embed_tokens.weight", f"{base}decoder.embed_tokens.weight")
    return Table(tuple(rows), 0, ignored, dict.fromkeys((*tied, "lm_head.weight"), shared))


def _side(config: Config, base: str, side: str) -> list[Row]:
    """Rows of one of the two stacks."""
    spec = config.encoder if side == "encoder" else config.decoder
    file, D, F = f"{base}{side}", config.dim, spec.mlp_dim
    rows = []
    if config.position == "learned":
        shape = (config.context_length + config.position_offset, D)
        path = f"{side}/positions/embedding"
        rows.append(Row(f"{file}.embed_positions.weight", (path,), shape))
    if config.embed_norm:
        rows += _norm(f"{file}.layernorm_embedding", f"{side}/embed_norm", D)
    layer, blocks = f"{file}.layers.{{}}", f"{side}/blocks"
    stacked: list[Row] = []
    for theirs, ours in (("self_attn", "attention"), ("encoder_attn", "cross"))[: 1 + spec.cross]:
        for x, y in (("q", "query"), ("k", "key"), ("v", "value"), ("out", "out")):
            heads, path = (spec.heads, spec.head_dim), f"{blocks}/{ours}/{y}"
            kernel, inputs = ((D, *heads), 1) if x != "out" else ((*heads, D), 2)
            name = f"{layer}.{theirs}.{x}_proj"
            stacked += dense(name, f"{path}_kernel", kernel, inputs, f"{path}_bias")
        stacked += _norm(f"{layer}.{theirs}_layer_norm", f"{blocks}/{ours}_norm", D)
    for theirs, ours, matrix in (("fc1", "up", (D, F)), ("fc2", "down", (F, D))):
        path = f"{blocks}/mlp/{ours}"
        stacked += dense(f"{layer}.{theirs}", f"{path}/kernel", matrix, 1, f"{path}/bias")
    stacked += _norm(f"{layer}.final_layer_norm", f"{blocks}/mlp_norm", D)
    return rows + [dataclasses.replace(row, layers=range(spec.layers)) for row in stacked]


def _norm(file: str, ours: str, width: int) -> list[Row]:
    leaves = {"weight": "scale", "bias": "bias"}
    return [Row(f"{file}.{x}", (f"{ours}/{y}",), (width,)) for x, y in leaves.items()]
