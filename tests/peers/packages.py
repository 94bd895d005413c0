"""Sets the references up so that they import and their numbers can be compared with ours.

Import this before transformers and timm; `record` and the tests' conftest do.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

import numpy as np
import torch

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

_KEEP: list[Any] = []  # a library's registrations end with the object that made them


def _mend_torchvision() -> None:
    """timm needs torchvision, and transformers imports it where it is installed.

    A torchvision built for CUDA does not load its operators beside a CPU build of PyTorch and then
    fails on `torchvision::nms`. Declaring the two that it looks for is enough to build every model.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEEP.append(library)
        importlib.import_module("torchvision")


_mend_torchvision()


def versions(*names: str) -> dict[str, str]:
    """Installed versions, for a record's `about`."""
    return {name: metadata.version(name) for name in names}


def tensor(x: np.ndarray, grad: bool = False) -> torch.Tensor:
    """A tensor with the array's type; `grad` for what the gradient is taken of."""
    made = torch.from_numpy(np.array(x))
    return made.requires_grad_() if grad else made


def array(x: torch.Tensor) -> np.ndarray:
    return x.detach().cpu().numpy().copy()


def values_and_gradients(
    function: Callable[..., torch.Tensor],
    arguments: Mapping[str, np.ndarray],
    rng: np.random.Generator,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A random cotangent, and for it "y" and "d_NAME" of every argument."""
    tensors = {name: tensor(x, grad=True) for name, x in arguments.items()}
    y = function(**tensors)
    cotangent = rng.normal(size=y.shape).astype(array(y).dtype)
    y.backward(tensor(cotangent))
    gradients = {}
    for name, x in tensors.items():
        assert x.grad is not None, name
        gradients[f"d_{name}"] = array(x.grad)
    return cotangent, {"y": array(y)} | gradients
