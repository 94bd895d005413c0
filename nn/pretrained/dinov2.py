"""Oquab et al. 2024, DINOv2, and Darcet et al. 2024, the same with registers: transformers' files.

The two formats differ in the registers, in how positions are interpolated (`antialias`, by which
what is written is chosen), and in the prefix of a classifier's tensors. Of a gated block's two
matrices into it, one tensor holds both: first what goes through the activation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nn.families.vit import Config
from nn.pretrained import vision
from nn.pretrained.table import Row, Table, dense, prefix, read, require

MODEL_TYPES = ("dinov2", "dinov2_with_registers")
FAMILY = "vit"
# What the formats mean when config.json leaves a key out.
DEFAULTS: Mapping[str, Any] = {
    **vision.DEFAULTS,
    "model_type": "dinov2",
    "layer_norm_eps": 1e-6,
    "mlp_ratio": 4,
    "layerscale_value": 1.0,
    "use_swiglu_ffn": False,
    "drop_path_rate": 0.0,
    "use_mask_token": True,
    "num_register_tokens": 4,
}


def hidden_units(dim: int, ratio: int, gated: bool) -> int:
    """Of the feed-forward block: two thirds if it is gated, rounded up to a multiple of 8."""
    return (dim * ratio * 2 // 3 + 7) // 8 * 8 if gated else dim * ratio


def _architectures(registers: bool) -> tuple[str, str]:
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    return f"{kind}Model", f"{kind}ForImageClassification"


def config_from(raw: Mapping[str, Any]) -> Config:
    """The config of a model from the content of its config.json.

    Raises:
      ValueError: a value that is wrong, or that our ViT cannot express.
    """
    c = read(raw, DEFAULTS, MODEL_TYPES)
    registers = c["model_type"] == MODEL_TYPES[1]
    known = _architectures(registers)
    headless = vision.architecture(c, known) == known[0]
    scale, gated = c["layerscale_value"], c["use_swiglu_ffn"]
    require(
        "our ViT",
        drop_path_rate=(c["drop_path_rate"], 0.0),
        layerscale_value=(scale, scale or 1.0),
    )
    mlp = hidden_units(c["hidden_size"], c["mlp_ratio"], gated)
    fields = vision.fields_from(c, mlp, 16 if registers else 14)
    return Config(
        **fields
        | {
            "activation": "swiglu" if gated else fields["activation"],
            "layer_scale": scale,
            # With registers there always is one.
            "mask_token": registers or c["use_mask_token"],
            "num_registers": c["num_register_tokens"] if registers else 0,
            "antialias": registers,
            "num_classes": 0 if headless else vision.classes(c),
            "pool": "class" if headless else "class_mean",
        }
    )


def config_to(config: Config) -> dict[str, Any]:
    """The content of config.json.

    Raises:
      ValueError: a file of this format cannot have a value of `config`.
    """
    registers, gated = config.antialias, config.activation == "swiglu"
    ratios = {hidden_units(config.dim, ratio, gated): ratio for ratio in range(1, 65)}
    nearest = min(ratios, key=lambda width: abs(width - config.mlp_width))
    require(
        "a DINOv2 file",
        position=(config.position, "learned"),
        num_registers=(config.num_registers, config.num_registers if registers else 0),
        mask_token=(config.mask_token, config.mask_token or registers),
        mask_ratio=(config.mask_ratio, 0.0),
        pool=(config.pool, "class_mean" if config.num_classes else "class"),
        pooler=(config.pooler, False),
        mlp_dim=(config.mlp_width, nearest),
        layer_scale=(config.layer_scale, config.layer_scale or 1.0),
    )
    own = {"num_register_tokens": config.num_registers}
    return vision.fields_to(config, "DINOv2", {"swiglu": "gelu"}) | {
        "model_type": MODEL_TYPES[registers],
        "architectures": [_architectures(registers)[config.num_classes > 0]],
        "mlp_ratio": ratios[config.mlp_width],
        "layerscale_value": config.layer_scale,
        "use_swiglu_ffn": gated,
        "drop_path_rate": 0.0,
        **(own if registers else {"use_mask_token": config.mask_token}),
        **(vision.labels(config.num_classes) if config.num_classes else {}),
    }


def table(config: Config, names: Iterable[str] | None = None) -> Table:
    """What lies where.

    Raises:
      ValueError: a file of this format cannot have a value of `config`.
    """
    model_type = config_to(config)["model_type"]
    base = "" if names is None and not config.num_classes else prefix(names, f"{model_type}.")
    D, layer, embeddings = config.dim, f"{base}encoder.layer.{{}}", f"{base}embeddings"
    rows = [
        *vision.embeddings(config, embeddings, "patch_embeddings.projection"),
        *vision.norm(f"{layer}.norm1", "blocks/attention_norm", D),
        *vision.encoder(config, base),
        Row(f"{layer}.layer_scale1.lambda1", ("blocks/attention_scale",), (D,)),
        *vision.norm(f"{layer}.norm2", "blocks/mlp_norm", D),
        *_mlp(config, f"{layer}.mlp"),
        Row(f"{layer}.layer_scale2.lambda1", ("blocks/mlp_scale",), (D,)),
        *vision.norm(f"{base}layernorm", "final_norm", D),
    ]
    if config.mask_token:
        rows.append(Row(f"{embeddings}.mask_token", ("embed/mask_token",), (D,), (1, D)))
    if config.num_classes:
        head = (2 * D, config.num_classes)
        rows += dense("classifier", "output/kernel", head, 1, "output/bias")
    registers = f"{embeddings}.register_tokens"
    empty = vision.without_registers(config, registers) if config.antialias else {}
    return Table(tuple(rows), config.num_layers, **empty)


def _mlp(config: Config, file: str) -> list[Row]:
    if config.activation != "swiglu":
        return vision.mlp(config, {"up": f"{file}.fc1", "down": f"{file}.fc2"})
    D, F = config.dim, config.mlp_width
    kernels, biases = (
        tuple(f"blocks/mlp/{part}/{leaf}" for part in ("gate", "up")) for leaf in ("kernel", "bias")
    )
    return [
        Row(f"{file}.weights_in.weight", kernels, (D, F), transpose=True),
        Row(f"{file}.weights_in.bias", biases, (F,)),
        *vision.mlp(config, {"down": f"{file}.weights_out"}),
    ]
