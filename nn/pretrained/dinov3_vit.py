"""Simeoni et al. 2025, DINOv3: files of transformers' DINOv3ViTModel, in both directions.

There are no learned positions: patches have a rotary embedding in two dimensions. A file without
registers holds an empty tensor of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nn import names
from nn.families.vit import Config
from nn.pretrained import vision
from nn.pretrained.table import Row, Table, read, require

MODEL_TYPES = ("dinov3_vit",)
FAMILY = "vit"
ARCHITECTURES = ("DINOv3ViTModel",)
# What the format means when config.json leaves a key out.
DEFAULTS: Mapping[str, Any] = {
    "model_type": "dinov3_vit",
    "architectures": None,
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "hidden_act": "gelu",
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-5,
    "rope_theta": 100.0,
    "image_size": None,  # a number, or height and width; None: 224
    "patch_size": None,  # likewise; None: 16
    "num_channels": 3,
    "query_bias": True,
    "key_bias": False,
    "value_bias": True,
    "proj_bias": True,
    "mlp_bias": True,
    "layerscale_value": 1.0,
    "drop_path_rate": 0.0,
    "use_gated_mlp": False,
    "num_register_tokens": 0,
    "pos_embed_shift": None,  # None: places do not move
    "pos_embed_jitter": None,
    "pos_embed_rescale": None,  # None here, where the format says 2.0: see `config_from`
}
# Theirs -> the projection of ours.
BIASES = {
    "query_bias": "query",
    "key_bias": "key",
    "value_bias": "value",
    "proj_bias": "out",
    "mlp_bias": "mlp",
}
# Their gated activations -> ours.
GATED = {"silu": "swiglu", "gelu": "geglu", "gelu_pytorch_tanh": "geglu_tanh", "relu": "reglu"}
# Their augmentation of places -> ours, and what ours is when there is none.
MOVES = {
    "pos_embed_shift": ("rope_shift", 0.0),
    "pos_embed_jitter": ("rope_jitter", 1.0),
    "pos_embed_rescale": ("rope_rescale", 1.0),
}


def config_from(raw: Mapping[str, Any]) -> Config:
    """The config of a model from the content of its config.json.

    Raises:
      ValueError: a value that is wrong, or that our ViT cannot express.
    """
    c = read({"pos_embed_rescale": 2.0, **raw}, DEFAULTS)
    vision.architecture(c, ARCHITECTURES)
    scale = c["layerscale_value"]
    require(
        "our ViT",
        drop_path_rate=(c["drop_path_rate"], 0.0),
        layerscale_value=(scale, scale or 1.0),
    )
    fields = vision.fields_from(
        {
            **c,
            "head_dim": None,
            "hidden_act": "gelu",
            "qkv_bias": True,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": c["attention_dropout"],
        },
        c["intermediate_size"],
    )
    gated = dict(GATED) if c["use_gated_mlp"] else vision.ACTIVATIONS
    moves = {ours: none if c[key] is None else c[key] for key, (ours, none) in MOVES.items()}
    return Config(
        **fields
        | moves
        | {
            "activation": names.lookup("hidden_act", c["hidden_act"], gated),
            "unbiased": tuple(ours for key, ours in BIASES.items() if not c[key]),
            "num_registers": c["num_register_tokens"],
            "layer_scale": c["layerscale_value"],
            "position": "rotary",
            "rope_theta": c["rope_theta"],
            "mask_token": True,
            "num_classes": 0,
        }
    )


def config_to(config: Config) -> dict[str, Any]:
    """The content of config.json.

    Raises:
      ValueError: a file of this format cannot have a value of `config`.
    """
    gated = {ours: theirs for theirs, ours in GATED.items()}
    require(
        "a DINOv3 file",
        position=(config.position, "rotary"),
        antialias=(config.antialias, False),
        mask_ratio=(config.mask_ratio, 0.0),
        mask_token=(config.mask_token, True),
        pool=(config.pool, "class"),
        pooler=(config.pooler, False),
        num_classes=(config.num_classes, 0),
        dropout=(config.dropout, 0.0),
        head_dim=(config.head_dim, 0),
        layer_scale=(config.layer_scale, config.layer_scale or 1.0),
    )
    fields = vision.sizes_to(config, "DINOv3", gated)
    moves = {key: getattr(config, ours) for key, (ours, _) in MOVES.items()}
    return fields | {
        "model_type": "dinov3_vit",
        "architectures": list(ARCHITECTURES),
        "intermediate_size": config.mlp_width,
        "attention_dropout": config.attention_dropout,
        "rope_theta": config.rope_theta,
        "layerscale_value": config.layer_scale,
        "drop_path_rate": 0.0,
        "use_gated_mlp": config.activation in gated,
        "num_register_tokens": config.num_registers,
        **{key: ours not in config.unbiased for key, ours in BIASES.items()},
        **{key: None if moves[key] == none else moves[key] for key, (_, none) in MOVES.items()},
    }


def table(config: Config, names: Iterable[str] | None = None) -> Table:
    """What lies where.

    Raises:
      ValueError: a file of this format cannot have a value of `config`.
    """
    config_to(config)
    D, layer = config.dim, "layer.{}"
    attention = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "o_proj"}
    parts = (*(("gate",) if config.activation in GATED.values() else ()), "up", "down")
    rows = [
        *vision.embeddings(config, "embeddings", "patch_embeddings"),
        Row("embeddings.mask_token", ("embed/mask_token",), (D,), (1, 1, D)),
        *vision.norm(f"{layer}.norm1", "blocks/attention_norm", D),
        *vision.attention(
            config, {part: f"{layer}.attention.{file}" for part, file in attention.items()}
        ),
        Row(f"{layer}.layer_scale1.lambda1", ("blocks/attention_scale",), (D,)),
        *vision.norm(f"{layer}.norm2", "blocks/mlp_norm", D),
        *vision.mlp(config, {part: f"{layer}.mlp.{part}_proj" for part in parts}),
        Row(f"{layer}.layer_scale2.lambda1", ("blocks/mlp_scale",), (D,)),
        *vision.norm("norm", "final_norm", D),
    ]
    empty = vision.without_registers(config, "embeddings.register_tokens")
    return Table(tuple(rows), config.num_layers, **empty)
