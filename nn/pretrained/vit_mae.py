"""He et al. 2022, masked autoencoders: the encoder of transformers' ViTMAE files.

A file with the decoder is read without it; what is written is a ViTMAEModel. Positions are fixed:
files hold them too, and those that are others than ours are refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from nn.families.vit import Config
from nn.layers.patches import sincos
from nn.pretrained import vision
from nn.pretrained.table import Leaf, Table, prefix, read, require

MODEL_TYPES = ("vit_mae",)
FAMILY = "vit"
ARCHITECTURES = ("ViTMAEModel", "ViTMAEForPreTraining")
# What the format means when config.json leaves a key out.
DEFAULTS: Mapping[str, Any] = {
    **vision.DEFAULTS,
    "model_type": "vit_mae",
    "intermediate_size": 3072,
    "mask_ratio": 0.75,
}
PLACE = "embeddings.position_embeddings"


def config_from(raw: Mapping[str, Any]) -> Config:
    """The config of a model from the content of its config.json.

    Raises:
      ValueError: a value that is wrong, or that our encoder cannot express.
    """
    c = read(raw, DEFAULTS)
    vision.architecture(c, ARCHITECTURES)
    require("our MAE", hidden_dropout_prob=(c["hidden_dropout_prob"], 0.0))
    fields = vision.fields_from(c, c["intermediate_size"])
    return Config(**fields, position="sincos", mask_ratio=c["mask_ratio"], num_classes=0)


def config_to(config: Config) -> dict[str, Any]:
    """The content of config.json.

    Raises:
      ValueError: a file of this format cannot have a value of `config`.
    """
    require(
        "a ViTMAE file",
        position=(config.position, "sincos"),
        num_registers=(config.num_registers, 0),
        layer_scale=(config.layer_scale, 0.0),
        antialias=(config.antialias, False),
        mask_token=(config.mask_token, False),
        pool=(config.pool, "class"),
        pooler=(config.pooler, False),
        num_classes=(config.num_classes, 0),
        dropout=(config.dropout, 0.0),
    )
    return vision.fields_to(config, "ViTMAE") | {
        "model_type": "vit_mae",
        "architectures": [ARCHITECTURES[0]],
        "intermediate_size": config.mlp_width,
        "mask_ratio": config.mask_ratio,
    }


@dataclasses.dataclass(frozen=True)
class _Fixed(Table):
    """Constants that a file holds must be ours."""

    def leaves(self, tensors: Mapping[str, np.ndarray]) -> dict[str, Leaf]:
        for name, ours in self.constants.items():
            theirs = tensors[name] if name in tensors else ours
            # Files in half precision hold them too.
            if theirs.shape != ours.shape or not np.allclose(
                theirs.astype(np.float32), ours, atol=1e-2
            ):
                raise ValueError(
                    f"tensor {name!r} holds other positions than the fixed ones of MAE; "
                    f"nearest: model_type='vit', whose positions are learned"
                )
        return super().leaves(tensors)


def table(config: Config, names: Iterable[str] | None = None) -> Table:
    """What lies where.

    Raises:
      ValueError: a file of this format cannot have a value of `config`.
    """
    config_to(config)
    base = "" if names is None else prefix(names, "vit.")
    D, layer = config.dim, f"{base}encoder.layer.{{}}"
    rows = [
        *vision.embeddings(config, f"{base}embeddings", "patch_embeddings.projection"),
        *vision.norm(f"{layer}.layernorm_before", "blocks/attention_norm", D),
        *vision.encoder(config, base),
        *vision.norm(f"{layer}.layernorm_after", "blocks/mlp_norm", D),
        *vision.mlp(config, {"up": f"{layer}.intermediate.dense", "down": f"{layer}.output.dense"}),
        *vision.norm(f"{base}layernorm", "final_norm", D),
    ]
    fixed = {f"{base}{PLACE}": sincos(config.grid, D, first=True)[None]}
    ignored = rf"decoder\..*|(vit\.)?{PLACE}"
    return _Fixed(tuple(rows), config.num_layers, ignored, constants=fixed)
