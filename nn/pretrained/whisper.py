"""Radford et al. 2022, Whisper: files of transformers' WhisperForConditionalGeneration.

Tensors are named with "model." in front, or without by an older file. The head is the embedding
table and not stored, unless the config unties it. The encoder's positions are stored, but they are
sinusoids that training does not change: a constant of our model, which a file must agree with.
Kernels of convolutions are (out, in, width) in the file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from nn import names as names_
from nn.families.whisper import Config
from nn.layers.position import sinusoid_rates
from nn.pretrained.table import Row, Table, dense, prefix, read, require

MODEL_TYPES = ("whisper",)
FAMILY = "whisper"
# What the format means when config.json leaves a key out.
DEFAULTS: Mapping[str, Any] = {
    "model_type": "whisper",
    "vocab_size": 51865,
    "num_mel_bins": 80,
    "encoder_layers": 4,
    "encoder_attention_heads": 6,
    "decoder_layers": 4,
    "decoder_attention_heads": 6,
    "decoder_ffn_dim": 1536,
    "encoder_ffn_dim": 1536,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
    "activation_function": "gelu",
    "d_model": 384,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "init_std": 0.02,
    "scale_embedding": False,
    "max_source_positions": 1500,
    "max_target_positions": 448,
    "use_weighted_layer_sum": False,
    "apply_spec_augment": False,
    "tie_word_embeddings": True,
}
# Theirs -> ours; of two names for one function the first is written. It is that of the blocks: the
# convolutions have gelu.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
NORM_EPS = 1e-5  # of all their norms; config.json cannot say another


@dataclasses.dataclass(frozen=True)
class Kernel(Row):
    """Of a convolution over time: (out, in, width) in the file, (width, in, out) with us."""

    @property
    def file_shape(self) -> tuple[int, ...]:
        return self.shape[::-1]

    def split(self, tensor: np.ndarray) -> list[np.ndarray]:
        return [tensor.T]

    def join(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        return np.ascontiguousarray(leaves[0].T)


def config_from(raw: Mapping[str, Any]) -> Config:
    """The config of a model from the content of its config.json.

    Raises:
      ValueError: a value that is wrong, or that our Whisper cannot express.
    """
    c = read(raw, DEFAULTS)
    require(
        "our Whisper",
        **{key: (c[key], DEFAULTS[key]) for key in ("encoder_layerdrop", "decoder_layerdrop")},
        scale_embedding=(c["scale_embedding"], False),
        use_weighted_layer_sum=(c["use_weighted_layer_sum"], False),
        apply_spec_augment=(c["apply_spec_augment"], False),
    )
    heads, hidden = c["encoder_attention_heads"], c["encoder_ffn_dim"]
    decoder_heads, decoder_hidden = c["decoder_attention_heads"], c["decoder_ffn_dim"]
    return Config(
        vocab_size=c["vocab_size"],
        context_length=c["max_target_positions"],
        audio_context=c["max_source_positions"],
        num_mels=c["num_mel_bins"],
        dim=c["d_model"],
        encoder_layers=c["encoder_layers"],
        decoder_layers=c["decoder_layers"],
        num_heads=heads,
        decoder_heads=0 if decoder_heads == heads else decoder_heads,
        mlp_dim=0 if hidden == 4 * c["d_model"] else hidden,
        decoder_mlp_dim=0 if decoder_hidden == hidden else decoder_hidden,
        activation=names_.lookup("activation_function", c["activation_function"], ACTIVATIONS),
        tie_embeddings=c["tie_word_embeddings"],
        dropout=c["dropout"],
        attention_dropout=c["attention_dropout"],
        mlp_dropout=c["activation_dropout"],
        init_std=c["init_std"],
    )


def config_to(config: Config) -> dict[str, Any]:
    """The content of config.json. It names no special tokens: those are the tokenizer's.

    Raises:
      ValueError: a Whisper file cannot have a value of `config`.
    """
    require("a Whisper file", norm_eps=(config.norm_eps, NORM_EPS))
    theirs = {ours: name for name, ours in reversed(ACTIVATIONS.items())}
    encoder, decoder = config.encoder, config.decoder
    return {
        "model_type": "whisper",
        "architectures": ["WhisperForConditionalGeneration"],
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "num_mel_bins": config.num_mels,
        "encoder_layers": encoder.layers,
        "encoder_attention_heads": encoder.heads,
        "encoder_ffn_dim": encoder.mlp_dim,
        "decoder_layers": decoder.layers,
        "decoder_attention_heads": decoder.heads,
        "decoder_ffn_dim": decoder.mlp_dim,
        "activation_function": names_.lookup("activation of Whisper", config.activation, theirs),
        "d_model": config.dim,
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "activation_dropout": config.mlp_dropout,
        "init_std": config.init_std,
        "max_source_positions": config.audio_context,
        "max_target_positions": config.context_length,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "begin_suppress_tokens": None,
    }


def table(config: Config, names: Iterable[str] | None = None) -> Table:
    """What lies where; a file may leave "model." out.

    Raises:
      ValueError: a Whisper file cannot have a value of `config`.
    """
    config_to(config)
    base = prefix(names, "model.")
    D, V, tokens = config.dim, config.vocab_size, f"{base}decoder.embed_tokens.weight"
    length = config.context_length
    rows: list[Row] = [
        Kernel(f"{base}encoder.conv1.weight", ("stem/conv_1/kernel",), (3, config.num_mels, D)),
        Row(f"{base}encoder.conv1.bias", ("stem/conv_1/bias",), (D,)),
        Kernel(f"{base}encoder.conv2.weight", ("stem/conv_2/kernel",), (3, D, D)),
        Row(f"{base}encoder.conv2.bias", ("stem/conv_2/bias",), (D,)),
        *_side(config, base, "encoder"),
        Row(tokens, ("embed/embedding",), (V, D)),
        Row(f"{base}decoder.embed_positions.weight", ("decoder/positions/embedding",), (length, D)),
        *_side(config, base, "decoder"),
    ]
    if not config.tie_embeddings:
        rows += dense("proj_out", "output/kernel", (D, V), 1)
    return Table(
        tuple(rows),
        layers=0,
        copies={"proj_out.weight": tokens} if config.tie_embeddings else {},
        constants={f"{base}encoder.embed_positions.weight": _positions(config)},
    )


def _positions(config: Config) -> np.ndarray:
    """Of the encoder, (S, D) float32."""
    rates = sinusoid_rates(config.dim, endpoint=True)
    angles = np.arange(config.audio_context, dtype=np.float32)[:, None] * rates
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def _side(config: Config, base: str, side: str) -> list[Row]:
    """The layers of encoder or decoder, and the norm after them."""
    s = config.encoder if side == "encoder" else config.decoder
    D, H, K, F = s.dim, s.heads, s.head_dim, s.mlp_dim
    layer, blocks = f"{base}{side}.layers.{{}}", f"{side}/blocks"
    branches = {"self_attn": "attention"} | ({"encoder_attn": "cross"} if s.cross else {})
    rows: list[Row] = []
    for theirs, ours in branches.items():
        path = f"{blocks}/{ours}"
        for name, kernel, shape, inputs in (
            ("q_proj", "query", (D, H, K), 1),
            ("k_proj", "key", (D, H, K), 1),
            ("v_proj", "value", (D, H, K), 1),
            ("out_proj", "out", (H, K, D), 2),
        ):
            bias = "" if kernel in s.unbiased else f"{path}/{kernel}_bias"
            rows += dense(
                f"{layer}.{theirs}.{name}", f"{path}/{kernel}_kernel", shape, inputs, bias
            )
        rows += _norm(f"{layer}.{theirs}_layer_norm", f"{path}_norm", D)
    for name, part, sizes in (("fc1", "up", (D, F)), ("fc2", "down", (F, D))):
        path = f"{blocks}/mlp/{part}"
        rows += dense(f"{layer}.{name}", f"{path}/kernel", sizes, 1, f"{path}/bias")
    rows += _norm(f"{layer}.final_layer_norm", f"{blocks}/mlp_norm", D)
    numbered = [dataclasses.replace(row, layers=range(s.layers)) for row in rows]
    return [*numbered, *_norm(f"{base}{side}.layer_norm", f"{side}/final_norm", D)]


def _norm(file: str, ours: str, width: int) -> list[Row]:
    leaves = {"weight": "scale", "bias": "bias"}
    return [Row(f"{file}.{x}", (f"{ours}/{y}",), (width,)) for x, y in leaves.items()]
