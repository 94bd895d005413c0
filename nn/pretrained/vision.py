"""What the files of vision transformers share: ViT, MAE and the DINO family are kin.

Kernels are (out, in) with the heads merged; that of the patches is (out, channels, height, width).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from nn import names
from nn.families.vit import Config
from nn.pretrained.table import Row, dense, require

# Theirs -> ours; of two names for one function the first is written.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
# What all these formats mean when config.json leaves a key out.
DEFAULTS: Mapping[str, Any] = {
    "architectures": None,  # None: the first that the format lists
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "head_dim": None,  # None: hidden_size / num_attention_heads
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "image_size": None,  # a number, or height and width; None: 224
    "patch_size": None,  # likewise; None: 16
    "num_channels": 3,
    "qkv_bias": True,
    "id2label": None,  # None: num_labels
    "num_labels": 2,
}
QKV = ("query", "key", "value")


def fields_from(c: Mapping[str, Any], mlp: int, patch: int = 16) -> dict[str, Any]:
    """Fields of our Config from a whole config.json; mlp: hidden units, patch: default size."""
    dim, heads, width = c["hidden_size"], c["num_attention_heads"], c["head_dim"]
    return {
        "image_size": pair(c["image_size"], 224),
        "patch_size": pair(c["patch_size"], patch),
        "in_channels": c["num_channels"],
        "dim": dim,
        "num_layers": c["num_hidden_layers"],
        "num_heads": heads,
        "head_dim": 0 if width is None or width * heads == dim else width,
        "mlp_dim": 0 if mlp == 4 * dim else mlp,
        "activation": names.lookup("hidden_act", c["hidden_act"], ACTIVATIONS),
        "norm_eps": c["layer_norm_eps"],
        "unbiased": () if c["qkv_bias"] else QKV,
        "dropout": c["hidden_dropout_prob"],
        "attention_dropout": c["attention_probs_dropout_prob"],
        "init_std": c["initializer_range"],
    }


def fields_to(
    config: Config, kind: str, gated: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """The same keys of a config.json of a kind of model, such as "ViT"; gated: see `sizes_to`.

    Raises:
      ValueError: such a file cannot have a value of `config`.
    """
    require(
        f"a {kind} file",
        unbiased=(config.unbiased, QKV if config.unbiased else ()),
        rope_shift=(config.rope_shift, 0.0),
        rope_jitter=(config.rope_jitter, 1.0),
        rope_rescale=(config.rope_rescale, 1.0),
    )
    return sizes_to(config, kind, gated) | {
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "qkv_bias": not config.unbiased,
    }


def sizes_to(config: Config, kind: str, gated: Mapping[str, str]) -> dict[str, Any]:
    """Those keys that DINOv3 has too; gated: our gated activations -> theirs."""
    theirs = {ours: name for name, ours in reversed(list(ACTIVATIONS.items()))} | dict(gated)
    found = {
        "hidden_size": config.dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "hidden_act": names.lookup(f"activation of {kind}", config.activation, theirs),
        "initializer_range": config.init_std,
        "layer_norm_eps": config.norm_eps,
        "image_size": number(config.image_size),
        "patch_size": number(config.patch_size),
        "num_channels": config.in_channels,
    }
    return found | ({"head_dim": config.head_dim} if config.head_dim else {})


def architecture(c: Mapping[str, Any], known: Sequence[str]) -> str:
    """Which of the architectures of a format a file holds; the first where it does not say.

    Raises:
      ValueError: another one.
    """
    given = known[0] if c["architectures"] is None else c["architectures"][0]
    names.lookup("architecture", given, dict.fromkeys(known))
    return str(given)


def classes(c: Mapping[str, Any]) -> int:
    """Of the head of a classifier."""
    return int(c["num_labels"]) if c["id2label"] is None else len(c["id2label"])


def labels(count: int) -> dict[str, Any]:
    """The keys that say how many classes there are."""
    found = {str(i): f"LABEL_{i}" for i in range(count)}
    return {"id2label": found, "label2id": {name: int(i) for i, name in found.items()}}


def pair(value: Any, default: int) -> tuple[int, int]:
    """Height and width, given both or one number for both."""
    value = default if value is None else value
    height, width = (value, value) if isinstance(value, int) else value
    return int(height), int(width)


def number(pair: tuple[int, ...]) -> int | list[int]:
    """The reverse of `pair`."""
    return pair[0] if pair[0] == pair[1] else list(pair)


@dataclasses.dataclass(frozen=True)
class Kernel(Row):
    """A kernel of patches, (height, width, I, O) here and (O, I, height, width) in the file."""

    @property
    def file_shape(self) -> tuple[int, ...]:
        return (self.shape[3], self.shape[2], *self.shape[:2])

    def split(self, tensor: np.ndarray) -> list[np.ndarray]:
        return [tensor.transpose(2, 3, 1, 0)]

    def join(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        return np.ascontiguousarray(leaves[0].transpose(3, 2, 0, 1))


def norm(file: str, ours: str, width: int) -> list[Row]:
    """Rows of a layer norm."""
    leaves = {"weight": "scale", "bias": "bias"}
    return [Row(f"{file}.{x}", (f"{ours}/{y}",), (width,)) for x, y in leaves.items()]


def linear(
    config: Config, file: str, part: str, ours: str, shape: tuple[int, ...], inputs: int = 1
) -> list[Row]:
    """Rows of a projection, with a bias unless `part` is unbiased; ours: path before "kernel"."""
    bias = "" if part in config.unbiased else f"{ours}bias"
    return dense(file, f"{ours}kernel", shape, inputs, bias)


def attention(config: Config, files: Mapping[str, str]) -> list[Row]:
    """Rows of attention; files: names of query, key, value and out."""
    D, H, K = config.dim, config.num_heads, config.head_width
    rows = []
    for part, file in files.items():
        out = part == "out"
        shape, inputs = ((H, K, D), 2) if out else ((D, H, K), 1)
        rows += linear(config, file, part, f"blocks/attention/{part}_", shape, inputs)
    return rows


def mlp(config: Config, files: Mapping[str, str]) -> list[Row]:
    """Rows of a feed-forward block; files: names of up, down and, if it is gated, gate."""
    D, F = config.dim, config.mlp_width
    rows = []
    for part, file in files.items():
        shape = (F, D) if part == "down" else (D, F)
        rows += linear(config, file, "mlp", f"blocks/mlp/{part}/", shape)
    return rows


def embeddings(config: Config, file: str, projection: str) -> list[Row]:
    """Rows of the class token, the patches' projection, positions, registers and mask token."""
    D, R = config.dim, config.num_registers
    shape = (*config.patch_size, config.in_channels, D)
    rows = [
        Row(f"{file}.cls_token", ("embed/class_token",), (D,), (1, 1, D)),
        Kernel(f"{file}.{projection}.weight", ("embed/kernel",), shape),
        Row(f"{file}.{projection}.bias", ("embed/bias",), (D,)),
    ]
    if R:
        rows.append(Row(f"{file}.register_tokens", ("embed/registers",), (R, D), (1, R, D)))
    if config.position == "learned":
        count = 1 + config.grid[0] * config.grid[1]
        place = ("embed/positions",)
        rows.append(Row(f"{file}.position_embeddings", place, (count, D), (1, count, D)))
    return rows


def encoder(config: Config, base: str) -> list[Row]:
    """Rows of the attention of files in the manner of BERT, which call it attention.attention."""
    layer = f"{base}encoder.layer.{{}}.attention"
    inner = {part: f"{layer}.attention.{part}" for part in QKV}
    return attention(config, inner | {"out": f"{layer}.output.dense"})


def without_registers(config: Config, file: str) -> dict[str, Any]:
    """For the table of a format whose files hold an empty tensor where there are no registers."""
    if config.num_registers:
        return {}
    empty = np.zeros((1, 0, config.dim), np.float32)
    return {"ignored": re.escape(file), "constants": {file: empty}}
