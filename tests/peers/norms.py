"""The normalisation layers of torch and transformers; channels are last here, as in ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tests.golden_store import Record
from tests.peers.packages import array, tensor, values_and_gradients, versions

VARIANTS = ("float32",)
EPS, CHANNELS, GROUPS = 3e-3, 12, 3  # an eps that shows

Tensor = torch.Tensor


def layer(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], scale, bias, EPS)


def rms(x: Tensor, scale: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], scale, EPS)


def llama_rms(x: Tensor, scale: Tensor) -> Tensor:
    return torch.func.functional_call(LlamaRMSNorm(CHANNELS, EPS), {"weight": scale}, x)


def group(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.group_norm(x.movedim(-1, 1), GROUPS, scale, bias, EPS).movedim(1, -1)


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "layer": layer,
    "rms": rms,
    "llama_rms": llama_rms,
    "group": group,
}


def batch(inputs: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Two training steps, then evaluation; the running statistics after each step."""
    norm = torch.nn.BatchNorm2d(CHANNELS, EPS, momentum=0.25)
    weights = {"weight": tensor(inputs["scale"]), "bias": tensor(inputs["bias"])}
    norm.load_state_dict(weights, strict=False)
    outputs = {}
    for step in ("train0", "train1", "eval"):
        norm.train(step != "eval")
        norm.zero_grad()
        x = tensor(inputs[f"batch/{step}"], grad=True)
        y = norm(x.movedim(-1, 1)).movedim(1, -1)
        inputs[f"ct/batch/{step}"] = rng.normal(size=y.shape).astype(np.float32)
        y.backward(tensor(inputs[f"ct/batch/{step}"]))
        gradients = {"d_x": x.grad, "d_scale": norm.weight.grad, "d_bias": norm.bias.grad}
        state = {"y": y, "mean": norm.running_mean, "var": norm.running_var} | gradients
        outputs |= {f"batch/{step}/{key}": array(value) for key, value in state.items()}
    return outputs


def record(variant: str, seed: int) -> Record:
    """Each norm of `x` with random scales and biases, and all gradients."""
    rng = np.random.default_rng(seed)
    shape = (4, 5, 3, CHANNELS)
    inputs = {
        "x": 2 * rng.normal(size=shape) + 1,
        "scale": rng.normal(size=CHANNELS) + 1,
        "bias": rng.normal(size=CHANNELS),
    }
    for step in ("train0", "train1", "eval"):
        inputs[f"batch/{step}"] = 2 * rng.normal(size=shape) + rng.normal(size=CHANNELS)
    inputs = {name: x.astype(variant) for name, x in inputs.items()}
    outputs: dict[str, np.ndarray] = {}
    for name, function in FUNCTIONS.items():
        keys = ("x", "scale") if "rms" in name else ("x", "scale", "bias")
        found = values_and_gradients(function, {key: inputs[key] for key in keys}, rng)
        inputs[f"ct/{name}"] = found[0]
        outputs |= {f"{name}/{key}": value for key, value in found[1].items()}
    outputs |= batch(inputs, rng)
    about = {
        "reference": "torch.nn.functional, torch.nn.BatchNorm2d, transformers LlamaRMSNorm",
        "versions": versions("torch", "transformers"),
        "seed": seed,
        "eps": EPS,
        "groups": GROUPS,
        "momentum": 0.75,  # what is kept; torch's own is what is new
        "note": "torch's running variance is the unbiased one",
    }
    return Record(inputs, outputs, about)
