"""Tiny CLIPs and SigLIPs of transformers, through the files that `save_pretrained` writes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers

from tests.golden_store import Record
from tests.parity.vits import settled
from tests.peers.files import through_files
from tests.peers.packages import array, tensor

# Every size differs, so that no mix-up of dimensions passes.
TEXT = dict(
    vocab_size=31,
    hidden_size=12,
    intermediate_size=20,
    num_hidden_layers=3,
    num_attention_heads=3,
    max_position_embeddings=9,
    bos_token_id=None,
    pad_token_id=None,
)
IMAGE = dict(
    hidden_size=8,
    intermediate_size=14,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=8,
    patch_size=4,
    num_channels=3,
)
# (model, options of the text tower, of the image tower, of both, height and width, tokens)
OPTIONS: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], Any, int]] = {
    "clip": ("CLIPModel", TEXT | dict(eos_token_id=7), IMAGE, dict(projection_dim=5), (8, 8), 9),
    # Texts end with their highest token; larger images, short texts, other activations.
    "clip_legacy": (
        "CLIPModel",
        TEXT | dict(eos_token_id=2, hidden_act="gelu"),
        IMAGE | dict(hidden_act="gelu"),
        dict(projection_dim=5, logit_scale_init_value=1.5),
        (13, 9),
        6,
    ),
    "clip_one_token": (
        "CLIPModel",
        TEXT | dict(eos_token_id=7, layer_norm_eps=0.05),
        IMAGE | dict(layer_norm_eps=0.05, image_size=4),
        dict(projection_dim=5),
        (4, 4),
        1,
    ),
    "siglip": ("SiglipModel", TEXT | dict(projection_size=8), IMAGE, {}, (8, 8), 9),
    "siglip_size": ("SiglipModel", TEXT | dict(projection_size=8), IMAGE, {}, (4, 14), 7),
}
VARIANTS = tuple(OPTIONS)
BATCH = 3


def raw(variant: str) -> dict[str, Any]:
    """What its config.json would hold at least."""
    name, text, image, both, *_ = OPTIONS[variant]
    kind = variant.partition("_")[0]
    towers = {"text_config": text, "vision_config": image}
    return {"model_type": kind, "architectures": [name], **both, **towers}


def model(variant: str, seed: int) -> transformers.PreTrainedModel:
    """A model all of whose parameters are random, biases and scales too."""
    name, text, image, both, *_ = OPTIONS[variant]
    model_class = getattr(transformers, name)
    config = model_class.config_class(text_config=text, vision_config=image, **both)
    config._attn_implementation = "eager"  # no fused kernel
    made = model_class(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim <= 1:
                parameter.add_(0.2 * noise)
            else:
                parameter.copy_(0.3 * noise)
    return made.eval()


def inputs_of(variant: str, seed: int) -> dict[str, np.ndarray]:
    """ "images" (B, H, W, C) and "tokens" (B, T), of which token 7 ends a text; other tokens follow
    it."""
    *_, (height, width), length = OPTIONS[variant]
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(BATCH, height, width, IMAGE["num_channels"]))
    tokens = rng.integers(8, TEXT["vocab_size"], (BATCH, length))
    tokens[np.arange(BATCH), rng.integers(0, length, BATCH)] = 7
    return {"images": images.astype(np.float32), "tokens": tokens.astype(np.int32)}


def outputs_of(
    made: transformers.PreTrainedModel, inputs: dict[str, np.ndarray]
) -> dict[str, torch.Tensor]:
    """Features of images and texts, logits (images, texts), and the loss."""
    pixels = tensor(inputs["images"]).permute(0, 3, 1, 2).to(made.dtype)
    found = made(
        input_ids=tensor(inputs["tokens"]).long(),
        pixel_values=pixels,
        interpolate_pos_encoding=True,
        return_loss=True,
    )
    return {
        "image": found.image_embeds,
        "text": found.text_embeds,
        "logits": found.logits_per_image,
        "loss": found.loss,
    }


def record(variant: str, seed: int) -> Record:
    """Inputs: those of `inputs_of`, and FILE/name, the tensors of the file. Outputs: those of
    `outputs_of`, and GRAD/name, the gradient of the loss for each tensor."""
    made = model(variant, seed)
    inputs = inputs_of(variant, seed)
    result = outputs_of(made, inputs)
    result["loss"].backward()
    outputs = {name: array(x) for name, x in result.items()}
    files, gradients, about = through_files(made, seed)
    outputs |= {f"grad/{name}": x for name, x in settled(gradients).items()}
    return Record(files | inputs, outputs, about)
