"""Tiny vision transformers of transformers, through the files that `save_pretrained` writes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from tests.golden_store import Record
from tests.parity.vits import settled
from tests.peers.files import through_files
from tests.peers.packages import array, tensor

# Every size differs, so that no mix-up of dimensions passes.
SIZES = dict(
    hidden_size=12,
    num_hidden_layers=2,
    num_attention_heads=3,
    image_size=12,
    patch_size=3,
    num_channels=2,
)
VIT = SIZES | dict(intermediate_size=20)
DINO3 = VIT | dict(hidden_size=24, num_register_tokens=2)
# (model, options of its config, height and width of the images, of patches)
OPTIONS: dict[str, tuple[str, dict[str, Any], tuple[int, int]]] = {
    "vit": ("ViTForImageClassification", VIT | dict(num_labels=7), (12, 12)),
    # Larger images, and heads that are not of the width of the residual over their number.
    "vit_pooler": ("ViTModel", VIT | dict(head_dim=6, layer_norm_eps=0.05), (15, 18)),
    "vit_unbiased": (
        "ViTForImageClassification",
        VIT | dict(qkv_bias=False, hidden_act="gelu_pytorch_tanh", num_labels=2),
        (3, 3),
    ),
    "vit_mae": ("ViTMAEModel", VIT | dict(mask_ratio=0.6), (12, 12)),
    "vit_mae_size": ("ViTMAEModel", VIT, (9, 15)),
    "dinov2": ("Dinov2ForImageClassification", SIZES | dict(num_labels=5), (15, 9)),
    "dinov2_swiglu": (
        "Dinov2Model",
        SIZES | dict(use_swiglu_ffn=True, layerscale_value=0.3, mlp_ratio=3),
        (12, 12),
    ),
    "dinov2_registers": (
        "Dinov2WithRegistersForImageClassification",
        SIZES | dict(num_register_tokens=3, num_labels=5),
        (6, 15),
    ),
    "dinov2_registers_none": (
        "Dinov2WithRegistersModel",
        SIZES | dict(num_register_tokens=0),
        (12, 12),
    ),
    "dinov3": ("DINOv3ViTModel", DINO3, (9, 15)),
    "dinov3_gated": (
        "DINOv3ViTModel",
        DINO3
        | dict(use_gated_mlp=True, hidden_act="silu", num_register_tokens=0, query_bias=False)
        | dict(key_bias=True, rope_theta=30.0, pos_embed_rescale=None),
        (12, 12),
    ),
}
VARIANTS = tuple(OPTIONS)
BATCH = 3


def model(variant: str, seed: int) -> transformers.PreTrainedModel:
    """A model all of whose trained parameters are random, biases and scales too."""
    name, options, _ = OPTIONS[variant]
    model_class = getattr(transformers, name)
    config = model_class.config_class(**options)
    config._attn_implementation = "eager"  # no fused kernel
    made = model_class(config)
    if name.startswith("ViTMAE"):  # made anew it has none; published files have these
        _set_fixed_positions(made)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if not parameter.requires_grad:
                continue
            if parameter.ndim == 1:
                parameter.add_(0.2 * noise)
            else:
                parameter.copy_(0.3 * noise)
    return made.eval()


def _set_fixed_positions(made: transformers.PreTrainedModel) -> None:
    sides = [made.config.image_size // made.config.patch_size] * 2
    width = made.config.hidden_size
    table = build_2d_sinusoidal_position_embedding(*sides, width, cls_token=True)
    halves = table.chunk(2, dim=-1)
    made.embeddings.position_embeddings.data.copy_(torch.cat(halves[::-1], dim=-1)[None])


def inputs_of(variant: str, seed: int) -> dict[str, np.ndarray]:
    """ "images" (B, H, W, C); "shuffle" (B, N) of MAE; "masked" (B, N), 0 or 1, of DINO without a
    head."""
    name, options, (height, width) = OPTIONS[variant]
    rng = np.random.default_rng(seed)
    shape = (BATCH, height, width, options["num_channels"])
    found = {"images": rng.normal(size=shape).astype(np.float32)}
    patches = (height // options["patch_size"]) * (width // options["patch_size"])
    if name.startswith("ViTMAE"):
        found["shuffle"] = rng.permuted(np.tile(np.arange(patches), (BATCH, 1)), axis=1)
    elif name in ("Dinov2Model", "Dinov2WithRegistersModel", "DINOv3ViTModel"):
        found["masked"] = rng.integers(0, 2, (BATCH, patches))
    return {key: x if x.dtype == np.float32 else x.astype(np.int32) for key, x in found.items()}


def outputs_of(
    made: transformers.PreTrainedModel, inputs: dict[str, np.ndarray]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Final states (B, T, D), and logits or what is pooled."""
    pixels = tensor(inputs["images"]).permute(0, 3, 1, 2).to(made.dtype)
    options: dict[str, Any] = {"pixel_values": pixels}
    kind = type(made).__name__
    if kind.startswith("ViT"):
        options["interpolate_pos_encoding"] = True
    if "shuffle" in inputs:  # noise that sorts into this order
        options["noise"] = tensor(np.argsort(inputs["shuffle"], axis=1).astype(np.float32))
    if "masked" in inputs:
        options["bool_masked_pos"] = tensor(inputs["masked"]).bool()
    if kind.endswith("Classification"):
        body = getattr(made, made.base_model_prefix)
        result = body(**options)
        states = result.last_hidden_state
        return states, made(**options).logits
    result = made(**options)
    states = result.last_hidden_state
    pooled = result.pooler_output if hasattr(result, "pooler_output") else states[:, 0]
    return states, pooled


def record(variant: str, seed: int) -> Record:
    """Inputs: those of `inputs_of`, FILE/name, the tensors of the file, and "of_states" and
    "of_output", weights. Outputs: "states", "output", "loss", which is the weighted sum of their
    squares, and GRAD/name, its gradient for each tensor."""
    made = model(variant, seed)
    inputs = inputs_of(variant, seed)
    states, output = outputs_of(made, inputs)
    rng = np.random.default_rng(seed + 1)
    given = {
        f"of_{name}": rng.uniform(size=x.shape).astype(np.float32)
        for name, x in (("states", states), ("output", output))
    }
    pairs = ((states, given["of_states"]), (output, given["of_output"]))
    loss = sum(((x.square() * tensor(weight)).sum() for x, weight in pairs), torch.zeros(()))
    loss.backward()
    outputs = {"states": array(states), "output": array(output), "loss": array(loss)}
    files, gradients, about = through_files(made, seed, partial=True)
    outputs |= {f"grad/{name}": x for name, x in settled(gradients).items()}
    return Record(files | inputs | given, outputs, about)
