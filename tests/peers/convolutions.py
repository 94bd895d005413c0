"""Convolution and pooling of torch; arrays have our layout here: channels last, kernels (K, I, O).

torch's kernels are (O, I, K), of the transpose (I, O, K).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from tests.golden_store import Record
from tests.peers.packages import values_and_gradients, versions

VARIANTS = ("float32",)

Tensor = torch.Tensor
X2, X1 = (2, 6, 5, 6), (2, 8, 6)
# name -> shapes of x and kernel, options in torch's words
CONV: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "plain": (X2, (3, 2, 6, 4), dict(padding=0)),
    "strided": (X2, (3, 3, 6, 4), dict(stride=(2, 1), padding=(1, 2))),
    "dilated": (X2, (3, 3, 6, 4), dict(dilation=2, padding=2)),
    "grouped": (X2, (3, 3, 2, 9), dict(groups=3, padding=1, stride=2)),
    "depthwise": (X2, (5, 5, 1, 6), dict(groups=6, padding=2)),
    "pointwise": (X2, (1, 1, 6, 10), dict(stride=2)),
    "line": (X1, (4, 6, 5), dict(stride=3, padding=2)),
    "volume": ((1, 4, 5, 6, 2), (2, 3, 3, 2, 3), dict(padding=1, stride=(1, 2, 2))),
}
TRANSPOSE: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "plain": (X2, (2, 3, 6, 4), {}),
    "strided": (X2, (4, 4, 6, 3), dict(stride=2, padding=1)),
    "extra": (X2, (3, 3, 6, 3), dict(stride=(2, 3), padding=1, output_padding=(1, 2))),
    "dilated": (X2, (3, 2, 6, 3), dict(stride=2, dilation=2, padding=1)),
    "grouped": (X2, (3, 3, 2, 9), dict(stride=2, groups=3, padding=1)),
    "line": (X1, (4, 6, 5), dict(stride=3)),
}
POOL: dict[str, dict[str, Any]] = {
    "max": dict(kernel_size=2),
    "max_overlap": dict(kernel_size=3, stride=2, padding=1),
    "avg": dict(kernel_size=(3, 2)),
    "avg_pad": dict(kernel_size=3, stride=2, padding=1),
    "avg_pad_not_counted": dict(kernel_size=3, stride=2, padding=1, count_include_pad=False),
}


def conv(options: dict[str, Any], x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    rank = x.ndim - 2
    function = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    weight = kernel.movedim((-1, -2), (0, 1))
    return function(x.movedim(-1, 1), weight, bias, **options).movedim(1, -1)


def transpose(options: dict[str, Any], x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    rank = x.ndim - 2
    function = (F.conv_transpose1d, F.conv_transpose2d)[rank - 1]
    groups = options["groups"] if "groups" in options else 1
    # Ours (K, I / g, O), whose outputs lie group by group; torch's (I, O / g, K).
    parts = [part.movedim((-2, -1), (0, 1)) for part in kernel.chunk(groups, dim=-1)]
    return function(x.movedim(-1, 1), torch.cat(parts), bias, **options).movedim(1, -1)


def pool(name: str, options: dict[str, Any], x: Tensor) -> Tensor:
    function = F.max_pool2d if name.startswith("max") else F.avg_pool2d
    return function(x.movedim(-1, 1), **options).movedim(1, -1)


def record(variant: str, seed: int) -> Record:
    """Every case with random inputs and all gradients."""
    rng = np.random.default_rng(seed)
    inputs: dict[str, np.ndarray] = {}
    outputs: dict[str, np.ndarray] = {}

    def run(name: str, function: Any, **arguments: np.ndarray) -> None:
        arguments = {key: x.astype(variant) for key, x in arguments.items()}
        ct, found = values_and_gradients(function, arguments, rng)
        inputs.update({f"{name}/{key}": x for key, x in arguments.items()} | {f"{name}/ct": ct})
        outputs.update({f"{name}/{key}": x for key, x in found.items()})

    for kind, cases, function in (("conv", CONV, conv), ("transpose", TRANSPOSE, transpose)):
        for name, (x, kernel, options) in cases.items():
            run(
                f"{kind}/{name}",
                lambda options=options, function=function, **a: function(options, **a),
                x=rng.normal(size=x),
                kernel=rng.normal(size=kernel),
                bias=rng.normal(size=kernel[-1]),
            )
    for name, options in POOL.items():
        run(
            f"pool/{name}",
            lambda x, name=name, options=options: pool(name, options, x),
            x=rng.normal(size=(2, 7, 6, 2)),
        )
    run(
        "pool/global",
        lambda x: F.adaptive_avg_pool2d(x.movedim(-1, 1), 1)[..., 0, 0],
        x=rng.normal(size=X2),
    )
    about = {
        "reference": "torch.nn.functional",
        "versions": versions("torch"),
        "seed": seed,
        "conv": {name: options for name, (_, _, options) in CONV.items()},
        "transpose": {name: options for name, (_, _, options) in TRANSPOSE.items()},
        "pool": POOL,
    }
    return Record(inputs, outputs, about)
