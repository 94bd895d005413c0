"""Dosovitskiy et al. 2021, ViT: files of transformers' ViTForImageClassification and ViTModel.

Files of the former name tensors "vit." in front; those of the latter have a pooler and no head.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nn.families.vit import Config
from nn.pretrained import vision
from nn.pretrained.table import Table, dense, prefix, read, require

MODEL_TYPES = ("vit",)
FAMILY = "vit"
ARCHITECTURES = ("ViTForImageClassification", "ViTModel")
# What the format means when config.json leaves a key out.
DEFAULTS: Mapping[str, Any] = {
    **vision.DEFAULTS,
    "model_type": "vit",
    "intermediate_size": 3072,
    "pooler_output_size": None,  # None: hidden_size
    "pooler_act": "tanh",
}


def config_from(raw: Mapping[str, Any]) -> Config:
    """The config of a model from the content of its config.json.

    Raises:
      ValueError: a value that is wrong, or that our ViT cannot express.
    """
    c = read(raw, DEFAULTS)
    headless = vision.architecture(c, ARCHITECTURES) == "ViTModel"
    if headless:
        require(
            "our ViT",
            pooler_act=(c["pooler_act"], "tanh"),
            pooler_output_size=(c["pooler_output_size"] or c["hidden_size"], c["hidden_size"]),
        )
    return Config(
        **vision.fields_from(c, c["intermediate_size"]),
        num_classes=0 if headless else vision.classes(c),
        pooler=headless,
    )


def config_to(config: Config) -> dict[str, Any]:
    """The content of config.json.

    Raises:
      ValueError: a file of this format cannot have a value of `config`.
    """
    require(
        "a ViT file",
        position=(config.position, "learned"),
        num_registers=(config.num_registers, 0),
        layer_scale=(config.layer_scale, 0.0),
        antialias=(config.antialias, False),
        mask_token=(config.mask_token, False),
        mask_ratio=(config.mask_ratio, 0.0),
        pool=(config.pool, "class"),
        pooler=(config.pooler, config.num_classes == 0),
    )
    return vision.fields_to(config, "ViT") | {
        "model_type": "vit",
        "architectures": [ARCHITECTURES[config.num_classes == 0]],
        "intermediate_size": config.mlp_width,
        **(vision.labels(config.num_classes) if config.num_classes else {}),
    }


def table(config: Config, names: Iterable[str] | None = None) -> Table:
    """What lies where.

    Raises:
      ValueError: a file of this format cannot have a value of `config`.
    """
    config_to(config)
    base = "" if names is None and not config.num_classes else prefix(names, "vit.")
    D, layer = config.dim, f"{base}encoder.layer.{{}}"
    rows = [
        *vision.embeddings(config, f"{base}embeddings", "patch_embeddings.projection"),
        *vision.norm(f"{layer}.layernorm_before", "blocks/attention_norm", D),
        *vision.encoder(config, base),
        *vision.norm(f"{layer}.layernorm_after", "blocks/mlp_norm", D),
        *vision.mlp(config, {"up": f"{layer}.intermediate.dense", "down": f"{layer}.output.dense"}),
        *vision.norm(f"{base}layernorm", "final_norm", D),
    ]
    if config.pooler:
        rows += dense(f"{base}pooler.dense", "pooler/kernel", (D, D), 1, "pooler/bias")
    if config.num_classes:
        rows += dense("classifier", "output/kernel", (D, config.num_classes), 1, "output/bias")
    return Table(tuple(rows), config.num_layers)
