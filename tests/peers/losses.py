"""Losses of torch.nn.functional, torch.distributions and transformers, with their gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch.distributions import Categorical, Normal, kl_divergence
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from tests.golden_store import Record
from tests.peers.packages import array, tensor, versions

VARIANTS = ("float32", "float64")

Tensor = torch.Tensor


def cross_entropy(
    logits: Tensor, labels: Tensor, smoothing: float = 0.0, z_loss: float = 0.0
) -> Tensor:
    """Over the last dimension; torch has the classes second."""
    loss = F.cross_entropy(
        logits.movedim(-1, 1),
        labels.movedim(-1, 1) if labels.is_floating_point() else labels,
        label_smoothing=smoothing,
        reduction="none",
    )
    return loss + z_loss * torch.logsumexp(logits, dim=-1) ** 2


def contrastive(a: Tensor, b: Tensor, same: Tensor) -> Tensor:
    """Hadsell et al. 2006, eq. 4, in torch's words."""
    d = F.pairwise_distance(a, b, eps=0.0)
    return 0.5 * torch.where(same.bool(), d**2, F.relu(2.0 - d) ** 2)


def nt_xent(a: Tensor, b: Tensor) -> Tensor:
    """As the SimCLR implementations in PyTorch have it."""
    both = F.normalize(torch.cat([a, b]))
    alike = (both @ both.T / 0.3).fill_diagonal_(-torch.inf)
    n = len(a)
    other = torch.cat([torch.arange(n, 2 * n), torch.arange(n)])
    return F.cross_entropy(alike, other, reduction="none").reshape(2, n).mean(dim=0)


def info_nce(q: Tensor, k: Tensor) -> Tensor:
    logits = F.normalize(q) @ F.normalize(k).T / 0.2
    return F.cross_entropy(logits, torch.arange(len(q)), reduction="none")


def clip(q: Tensor, k: Tensor) -> Tensor:
    return image_text_contrastive_loss(F.normalize(q) @ F.normalize(k).T / 0.2)


def kl_gaussian(mean: Tensor, logvar: Tensor, mean2: Tensor, logvar2: Tensor) -> Tensor:
    first, second = Normal(mean, (logvar / 2).exp()), Normal(mean2, (logvar2 / 2).exp())
    return kl_divergence(first, second)


def kl_categorical(p: Tensor, q: Tensor) -> Tensor:
    return kl_divergence(Categorical(logits=p), Categorical(logits=q))


CASES: dict[str, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    "mse": (lambda x, y: F.mse_loss(x, y, reduction="none"), ("x", "y")),
    "mae": (lambda x, y: F.l1_loss(x, y, reduction="none"), ("x", "y")),
    "huber": (lambda x, y: F.huber_loss(x, y, reduction="none", delta=0.7), ("x", "y")),
    "bce": (
        lambda x, y: F.binary_cross_entropy_with_logits(x, y, reduction="none"),
        ("x", "chance"),
    ),
    "ce": (cross_entropy, ("logits", "labels")),
    "ce_smooth": (lambda x, y: cross_entropy(x, y, 0.1), ("logits", "labels")),
    "ce_z": (lambda x, y: cross_entropy(x, y, 0.0, 0.01), ("logits", "labels")),
    "ce_soft": (cross_entropy, ("logits", "targets")),
    "ce_soft_smooth": (lambda x, y: cross_entropy(x, y, 0.1), ("logits", "targets")),
    "triplet": (
        lambda a, p, n: F.triplet_margin_loss(a, p, n, 0.5, eps=0.0, reduction="none"),
        ("x", "y", "third"),
    ),
    "contrastive": (contrastive, ("x", "y", "same")),
    "nt_xent": (nt_xent, ("x", "y")),
    "info_nce": (info_nce, ("x", "y")),
    "clip": (clip, ("x", "y")),
    "kl_gaussian": (kl_gaussian, ("x", "logvar", "y", "logvar2")),
    "kl_categorical": (kl_categorical, ("logits", "other")),
}


def record(variant: str, seed: int) -> Record:
    """Each loss per example, and its gradients for a cotangent that is part of the inputs."""
    rng = np.random.default_rng(seed)
    inputs: dict[str, np.ndarray] = dict(
        zip(("x", "y", "third", "logvar", "logvar2"), rng.normal(size=(5, 7, 6)), strict=True)
    )
    logits, other, raw = 4 * rng.normal(size=(3, 4, 3, 11))
    inputs |= {"logits": logits, "other": other, "chance": rng.uniform(size=(7, 6))}
    inputs["targets"] = np.exp(raw) / np.exp(raw).sum(-1, keepdims=True)
    inputs = {name: value.astype(variant) for name, value in inputs.items()}
    inputs["labels"] = rng.integers(0, 11, (4, 3))
    inputs["same"] = np.arange(7) % 2
    outputs: dict[str, np.ndarray] = {}
    for name, (function, arguments) in CASES.items():
        values = [inputs[key] for key in arguments]
        tensors = [tensor(v, grad=np.issubdtype(v.dtype, np.floating)) for v in values]
        y = function(*tensors)
        inputs[f"ct/{name}"] = rng.normal(size=y.shape).astype(variant)
        y.backward(tensor(inputs[f"ct/{name}"]))
        outputs[f"{name}/y"] = array(y)
        for key, x in zip(arguments, tensors, strict=True):
            if x.grad is not None:
                outputs[f"{name}/d_{key}"] = array(x.grad)
    about = {
        "reference": "torch.nn.functional, torch.distributions, transformers CLIP",
        "versions": versions("torch", "transformers"),
        "seed": seed,
        "note": "triplet: torch's eps inside the norm is set to 0",
    }
    return Record(inputs, outputs, about)
