"""Activations of torch.nn.functional and of transformers, with their gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from transformers.activations import ACT2FN

from tests.golden_store import Record
from tests.peers.packages import array, tensor, versions

VARIANTS = ("float32", "float64")

Function = Callable[..., torch.Tensor]
OF_X: dict[str, Function] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": F.relu,
    "relu2": ACT2FN["relu2"],
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": ACT2FN["quick_gelu"],
    "silu": F.silu,
    "swish": ACT2FN["swish"],
    "softplus": F.softplus,
    "softmax": lambda x: F.softmax(x, dim=-1),
}
OF_TWO: dict[str, Function] = {
    "glu": lambda gate, up: F.glu(torch.cat([up, gate], dim=-1)),
    "geglu": lambda gate, up: F.gelu(gate) * up,
    "geglu_tanh": lambda gate, up: ACT2FN["gelu_pytorch_tanh"](gate) * up,
    "swiglu": lambda gate, up: ACT2FN["silu"](gate) * up,
    "reglu": lambda gate, up: F.relu(gate) * up,
}


def record(variant: str, seed: int) -> Record:
    """Each function of `x` (or `x` and `other`), and its gradients for the cotangent `ct`."""
    rng = np.random.default_rng(seed)
    x, other, ct = 3 * rng.normal(size=(3, 5, 23))
    x[0, :6] = [0.0, 9.0, -9.0, 1e-3, -1e-3, -5.5]  # the kink, tails
    slope = rng.uniform(0.1, 0.5, size=23)
    inputs = {"x": x, "other": other, "ct": ct, "slope": slope}
    inputs = {name: value.astype(variant) for name, value in inputs.items()}
    outputs: dict[str, np.ndarray] = {}

    def run(name: str, function: Function, **arguments: np.ndarray) -> None:
        tensors = {key: tensor(value, grad=True) for key, value in arguments.items()}
        y = function(*tensors.values())
        y.backward(tensor(inputs["ct"]))
        outputs[f"{name}/y"] = array(y)
        for key, value in tensors.items():
            assert value.grad is not None
            outputs[f"{name}/d{key}"] = array(value.grad)

    for name, function in OF_X.items():
        run(name, function, x=inputs["x"])
    for name, function in OF_TWO.items():
        run(name, function, gate=inputs["x"], up=inputs["other"])
    run("prelu", F.prelu, x=inputs["x"], slope=inputs["slope"])
    about = {
        "reference": "torch.nn.functional, transformers.activations.ACT2FN",
        "versions": versions("torch", "transformers"),
        "seed": seed,
    }
    return Record(inputs, outputs, about)
