"""Tiny ResNets of transformers, through the files that `save_pretrained` writes.

Computed in float64 and then rounded: in float32 a batch norm of few elements loses two digits, and
now and then a ReLU falls on the other side of 0.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file

from tests.golden_store import Record
from tests.peers.packages import array, tensor, versions

BOTTLENECK = dict(
    num_channels=2,
    embedding_size=3,
    hidden_sizes=[12, 24],
    depths=[2, 1],
    layer_type="bottleneck",
    num_labels=7,
)
OPTIONS: dict[str, dict[str, Any]] = {
    "basic": dict(
        num_channels=3,
        embedding_size=5,
        hidden_sizes=[5, 10, 20],
        depths=[1, 2, 1],
        layer_type="basic",
        num_labels=6,
    ),
    "bottleneck": BOTTLENECK,
    "bottleneck_v1": BOTTLENECK | dict(downsample_in_bottleneck=True),
}
VARIANTS = tuple(OPTIONS)
BATCH, HEIGHT, WIDTH = 5, 21, 18  # halved unevenly; the last images are smaller than the kernel


def model(variant: str, seed: int) -> transformers.ResNetForImageClassification:
    """A model all of whose parameters and statistics are random, scales and biases too."""
    made = transformers.ResNetForImageClassification(transformers.ResNetConfig(**OPTIONS[variant]))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, x in made.state_dict().items():
            noise = torch.randn(x.shape, generator=generator)
            if name.endswith("running_var"):
                x.copy_(0.5 + noise.square())
            elif x.ndim > 1:
                x.copy_(noise * (2 / x[0].numel()) ** 0.5)
            elif x.is_floating_point():
                x.add_(0.3 * noise)
    return made


def record(variant: str, seed: int) -> Record:
    """Inputs: "images" (B, H, W, C), "labels" (B,) and FILE/name, the tensors of the file.
    Outputs: "eval" logits by the running statistics; in training "train" logits, "loss" (mean,
    nats), GRAD/name of each parameter, and STATISTICS/name after it."""
    made = model(variant, seed)
    rng = np.random.default_rng(seed)
    shape = (BATCH, HEIGHT, WIDTH, made.config.num_channels)
    images = rng.normal(size=shape).astype(np.float32)
    labels = rng.integers(0, made.config.num_labels, BATCH)
    pixels = tensor(images).permute(0, 3, 1, 2)
    with tempfile.TemporaryDirectory() as folder:

        def saved() -> dict[str, np.ndarray]:
            made.save_pretrained(folder)
            tensors = load_file(Path(folder) / "model.safetensors")
            return {k: x for k, x in tensors.items() if not k.endswith("num_batches_tracked")}

        tensors = saved()
        made, pixels = made.double(), pixels.double()
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        outputs = {"eval": array(made.eval()(pixel_values=pixels).logits)}
        result = made.train()(pixel_values=pixels, labels=tensor(labels))
        result.loss.backward()
        outputs |= {"train": array(result.logits), "loss": array(result.loss)}
        after = {f"statistics/{k}": x for k, x in saved().items() if ".running_" in k}
        # The gradients take the same way, so that they have the names of the file.
        with torch.no_grad():
            for parameter in made.parameters():
                assert parameter.grad is not None
                parameter.copy_(parameter.grad)
        gradients = {f"grad/{k}": x for k, x in saved().items() if ".running_" not in k}
    about = {
        "reference": "transformers.ResNetForImageClassification",
        "versions": versions("torch", "transformers"),
        "seed": seed,
        "config": config,
    }
    inputs = {f"file/{name}": x for name, x in tensors.items()}
    inputs |= {"images": images, "labels": labels.astype(np.int32)}
    outputs = {name: x.astype(np.float32) for name, x in (outputs | after | gradients).items()}
    return Record(inputs, outputs, about)
