"""Radford et al. 2021, CLIP, and Zhai et al. 2023, SigLIP: transformers' CLIPModel and SiglipModel.

A config.json has one part per tower. Where it says that texts end with token 2, as older ones do,
the highest token of a text ends it, whatever it is. First values of the factor and the bias of
similarities, and of SigLIP's weights, are written too, though transformers does not look at all of
them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from nn import names
from nn.families.clip import Config
from nn.pretrained import vision
from nn.pretrained.table import Row, Table, dense, read, require

MODEL_TYPES = ("clip", "siglip")
FAMILY = "clip"
LEGACY_END = 2  # of texts: see the top of this file
TOWERS = {"text_config": "text", "vision_config": "image"}
KINDS = {"clip": "CLIPModel", "siglip": "SiglipModel"}
# What the formats mean when config.json leaves a key out; of both towers.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "clip": {
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
    },
    "siglip": {
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
    },
}
TEXT: Mapping[str, Mapping[str, Any]] = {
    "clip": {
        "model_type": "clip_text_model",
        "vocab_size": 49408,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "max_position_embeddings": 77,
        "eos_token_id": 49407,
    },
    "siglip": {
        "model_type": "siglip_text_model",
        "vocab_size": 32000,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 64,
        "projection_size": None,  # None: hidden_size
    },
}
_IMAGE: Mapping[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": None,  # a number, or height and width; None: 224
    "patch_size": None,  # likewise; None: 32 for CLIP, 16 for SigLIP
}
IMAGE: Mapping[str, Mapping[str, Any]] = {
    "clip": {"model_type": "clip_vision_model", **_IMAGE},
    "siglip": {"model_type": "siglip_vision_model", "vision_use_head": True, **_IMAGE},
}
TOP: Mapping[str, Mapping[str, Any]] = {
    "clip": {"model_type": "clip", "projection_dim": 512, "logit_scale_init_value": 2.6592},
    "siglip": {
        "model_type": "siglip",
        "logit_scale_init_value": math.log(10.0),
        "logit_bias_init_value": -10.0,
    },
}


def config_from(raw: Mapping[str, Any]) -> Config:
    """The config of a model from the content of its config.json.

    Raises:
      ValueError: a value that is wrong, or that our CLIP cannot express.
    """
    kind = str(raw["model_type"]) if "model_type" in raw else "clip"
    names.lookup("model_type", kind, dict.fromkeys(MODEL_TYPES))
    top = read(raw, TOP[kind])
    text = read(_part(raw, "text_config"), {**DEFAULTS[kind], **TEXT[kind]})
    image = read(_part(raw, "vision_config"), {**DEFAULTS[kind], **IMAGE[kind]})
    shared = ("layer_norm_eps", "attention_dropout", "initializer_range")
    require("our CLIP", **{f"text_config.{key}": (text[key], image[key]) for key in shared})
    width = top["projection_dim"] if kind == "clip" else image["hidden_size"]
    fields: dict[str, Any] = {"logit_scale": top["logit_scale_init_value"]}
    if kind == "clip":
        end = text["eos_token_id"]
        fields["end_token"] = -1 if end == LEGACY_END else end
    else:
        fields["logit_bias"] = top["logit_bias_init_value"]
        size = text["projection_size"] or text["hidden_size"]
        require(
            "our SigLIP",
            vision_use_head=(image["vision_use_head"], True),
            projection_size=(size, width),
        )
    for tower, c in (("text", text), ("image", image)):
        mlp = c["intermediate_size"]
        fields |= {
            f"{tower}_dim": c["hidden_size"],
            f"{tower}_layers": c["num_hidden_layers"],
            f"{tower}_heads": c["num_attention_heads"],
            f"{tower}_mlp_dim": 0 if mlp == 4 * c["hidden_size"] else mlp,
            f"{tower}_activation": names.lookup("hidden_act", c["hidden_act"], vision.ACTIVATIONS),
        }
    return Config(
        kind=kind,
        image_size=vision.pair(image["image_size"], 224),
        patch_size=vision.pair(image["patch_size"], 32 if kind == "clip" else 16),
        in_channels=image["num_channels"],
        vocab_size=text["vocab_size"],
        context_length=text["max_position_embeddings"],
        embed_dim=width,
        norm_eps=text["layer_norm_eps"],
        attention_dropout=text["attention_dropout"],
        init_std=text["initializer_range"],
        **fields,
    )


def _part(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The config of a tower; older files say it twice, and then what is said later counts."""
    found: dict[str, Any] = {}
    for place in (key, f"{key}_dict"):
        found |= raw[place] if place in raw and raw[place] is not None else {}
    return found


def config_to(config: Config) -> dict[str, Any]:
    """The content of config.json."""
    kind = config.kind
    theirs = {ours: name for name, ours in reversed(list(vision.ACTIVATIONS.items()))}
    towers = {}
    for key, tower in TOWERS.items():
        spec = config.tower(tower)
        towers[key] = {
            "hidden_size": spec.dim,
            "intermediate_size": spec.mlp_dim,
            "num_hidden_layers": spec.layers,
            "num_attention_heads": spec.heads,
            "hidden_act": names.lookup(f"activation of {KINDS[kind]}", spec.activation, theirs),
            "layer_norm_eps": spec.norm_eps,
            "attention_dropout": spec.attention_dropout,
            "initializer_range": spec.init_std,
        }
    towers["text_config"] |= {
        "model_type": f"{kind}_text_model",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "bos_token_id": None,
        "pad_token_id": None,
        "eos_token_id": LEGACY_END if config.end_token < 0 else config.end_token,
    }
    towers["vision_config"] |= {
        "model_type": f"{kind}_vision_model",
        "num_channels": config.in_channels,
        "image_size": vision.number(config.image_size),
        "patch_size": vision.number(config.patch_size),
    }
    top: dict[str, Any] = {"logit_scale_init_value": config.logit_scale}
    if kind == "clip":
        top["projection_dim"] = config.embed_dim
        for part in towers.values():
            part["projection_dim"] = config.embed_dim
    else:
        top["logit_bias_init_value"] = config.logit_bias
        towers["text_config"]["projection_size"] = config.embed_dim
        towers["vision_config"]["vision_use_head"] = True
    return {"model_type": kind, "architectures": [KINDS[kind]], **top, **towers}


@dataclasses.dataclass(frozen=True)
class _Scalar(Row):
    """One number, (1,) here and () in the file."""

    @property
    def file_shape(self) -> tuple[int, ...]:
        return ()

    def split(self, tensor: np.ndarray) -> list[np.ndarray]:
        return [tensor.reshape(1)]

    def join(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        return np.array(leaves[0].reshape(()))


def table(config: Config, names: Iterable[str] | None = None) -> Table:
    """What lies where.

    Raises:
      ValueError: a file of this format cannot have a value of `config`.
    """
    config_to(config)
    text, image = "text_model", "vision_model"
    E, D, W = config.embed_dim, config.text_dim, config.image_dim
    patches = config.grid[0] * config.grid[1]
    kernel = (*config.patch_size, config.in_channels, W)
    tokens, places = (config.vocab_size, D), (config.context_length, D)
    rows = [
        Row(f"{text}.embeddings.token_embedding.weight", ("text_embed/embedding",), tokens),
        Row(f"{text}.embeddings.position_embedding.weight", ("text_positions/embedding",), places),
        *_tower(config, "text", text),
        *vision.norm(f"{text}.final_layer_norm", "text_norm", D),
        vision.Kernel(
            f"{image}.embeddings.patch_embedding.weight", ("image_embed/kernel",), kernel
        ),
        *_tower(config, "image", image),
        *vision.norm(f"{image}.post_layernorm", "image_norm", W),
    ]
    positions, place = f"{image}.embeddings.position_embedding.weight", ("image_embed/positions",)
    if config.kind == "clip":
        rows += [
            _Scalar("logit_scale", ("logit_scale",), (1,)),
            Row(f"{image}.embeddings.class_embedding", ("image_embed/class_token",), (W,)),
            Row(positions, place, (1 + patches, W)),
            *vision.norm(f"{image}.pre_layrnorm", "image_first_norm", W),
            *dense("text_projection", "text_project/kernel", (D, E), 1),
            *dense("visual_projection", "image_project/kernel", (W, E), 1),
        ]
    else:
        bias = f"{image}.embeddings.patch_embedding.bias"
        rows += [
            Row("logit_scale", ("logit_scale",), (1,)),
            Row("logit_bias", ("logit_bias",), (1,)),
            Row(bias, ("image_embed/bias",), (W,)),
            Row(positions, place, (patches, W)),
            *dense(f"{text}.head", "text_project/kernel", (D, E), 1, "text_project/bias"),
            *_pool(config, f"{image}.head"),
        ]
    numbers = rf"({text}|{image})\.embeddings\.position_ids"
    return Table(tuple(rows), config.image_layers, numbers)


def _tower(config: Config, name: str, file: str) -> list[Row]:
    """The blocks of a tower."""
    spec = config.tower(name)
    D, H, K, F = spec.dim, spec.heads, spec.head_dim, spec.mlp_dim
    layer, ours = f"{file}.encoder.layers.{{}}", f"{name}_blocks"
    rows = [
        *vision.norm(f"{layer}.layer_norm1", f"{ours}/attention_norm", D),
        *vision.norm(f"{layer}.layer_norm2", f"{ours}/mlp_norm", D),
    ]
    for theirs, part, shape, inputs in (
        ("q_proj", "query", (D, H, K), 1),
        ("k_proj", "key", (D, H, K), 1),
        ("v_proj", "value", (D, H, K), 1),
        ("out_proj", "out", (H, K, D), 2),
    ):
        path = f"{ours}/attention/{part}"
        tensor = f"{layer}.self_attn.{theirs}"
        rows += dense(tensor, f"{path}_kernel", shape, inputs, f"{path}_bias")
    for theirs, part, matrix in (("fc1", "up", (D, F)), ("fc2", "down", (F, D))):
        path = f"{ours}/mlp/{part}"
        rows += dense(f"{layer}.mlp.{theirs}", f"{path}/kernel", matrix, 1, f"{path}/bias")
    return [dataclasses.replace(row, layers=range(spec.layers)) for row in rows]


def _pool(config: Config, file: str) -> list[Row]:
    """The attention pooling of SigLIP."""
    spec = config.tower("image")
    D, H, K, F = spec.dim, spec.heads, spec.head_dim, spec.mlp_dim
    kernels, biases = (
        tuple(f"image_pool/{part}_{leaf}" for part in vision.QKV) for leaf in ("kernel", "bias")
    )
    out = ("image_pool/out_kernel", (H, K, D), 2, "image_pool/out_bias")
    return [
        Row(f"{file}.probe", ("image_pool/probe",), (D,), (1, 1, D)),
        Row(f"{file}.attention.in_proj_weight", kernels, (D, H, K), (D, H * K), transpose=True),
        Row(f"{file}.attention.in_proj_bias", biases, (H, K), (H * K,)),
        *dense(f"{file}.attention.out_proj", *out),
        *vision.norm(f"{file}.layernorm", "image_pool/norm", D),
        *dense(f"{file}.mlp.fc1", "image_pool/up/kernel", (D, F), 1, "image_pool/up/bias"),
        *dense(f"{file}.mlp.fc2", "image_pool/down/kernel", (F, D), 1, "image_pool/down/bias"),
    ]
