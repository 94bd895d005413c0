"""Fifty steps of torch.optim and timm.optim, and the learning rates of torch's schedulers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from timm.optim import Lamb, Lion
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler
from transformers import Adafactor

from tests.golden_store import Record
from tests.peers.packages import array, tensor, versions

VARIANTS = ("float32", "float64")

# Sums of few powers of 2, so that a rate held in float32 costs no digits in float64.
RATE, DECAY, MOMENTUM, BETAS, EPS, CLIP = 2**-7, 0.25, 0.9, (0.9, 0.95), 1e-6, 1.5
STEPS, KEPT = 50, (1, 2, 10, 50)

Groups = Iterable[dict[str, Any]]
OPTIMIZERS: dict[str, Callable[[Groups], Optimizer]] = {
    "sgd": lambda groups: SGD(groups, lr=RATE),
    "momentum": lambda groups: SGD(groups, lr=RATE, momentum=MOMENTUM),
    "nesterov": lambda groups: SGD(groups, lr=RATE, momentum=MOMENTUM, nesterov=True),
    "rmsprop": lambda groups: RMSprop(groups, lr=RATE, alpha=BETAS[1], eps=EPS),
    "adam": lambda groups: Adam(groups, lr=RATE, betas=BETAS, eps=EPS),
    "adamw": lambda groups: AdamW(groups, lr=RATE, betas=BETAS, eps=EPS),
    "lion": lambda groups: Lion(groups, lr=RATE, betas=BETAS),
    "lamb": lambda groups: Lamb(
        groups, lr=RATE, betas=BETAS, eps=EPS, max_grad_norm=None, always_adapt=True
    ),
}
SCHEDULES: dict[str, Callable[[Optimizer], LRScheduler]] = {
    "cosine": lambda o: CosineAnnealingLR(o, T_max=STEPS, eta_min=0.1 * RATE),
    "linear": lambda o: LinearLR(o, start_factor=1.0, end_factor=0.1, total_iters=STEPS),
}


def steps(
    make: Callable[[Groups], Optimizer],
    start: dict[str, np.ndarray],
    phase: dict[str, np.ndarray],
    clip: bool = False,
) -> dict[str, np.ndarray]:
    """Parameters after 1, 2, 10 and 50 steps with the gradient 0.125 p + sin(step + phase).

    It follows the parameters, but does not vanish where they settle: there the methods that divide
    by its size would blow rounding up.
    """
    params = {name: torch.nn.Parameter(tensor(x)) for name, x in start.items()}
    optimizer = make(
        {"params": [p], "weight_decay": DECAY if "kernel" in name else 0.0}
        for name, p in params.items()
    )
    found = {}
    for step in range(1, STEPS + 1):
        for name, p in params.items():
            value = p.detach()
            p.grad = 0.125 * value + torch.sin(step + tensor(phase[name]))
        if clip:
            torch.nn.utils.clip_grad_norm_(params.values(), CLIP)
        optimizer.step()
        if step in KEPT:
            found |= {f"{name}/{step}": array(p) for name, p in params.items()}
    return found


def adafactor(start: np.ndarray, phase: np.ndarray) -> dict[str, np.ndarray]:
    """Of a matrix large enough to be factored; a part of it is kept."""
    weight = torch.nn.Parameter(tensor(start))
    optimizer = Adafactor([weight], lr=RATE, relative_step=False, scale_parameter=True)
    found = {}
    for step in range(1, STEPS + 1):
        value = weight.detach()
        weight.grad = 0.125 * value + torch.sin(step + tensor(phase))
        optimizer.step()
        if step in KEPT:
            found[f"kernel/{step}"] = array(weight)[::16, ::16]
    return found


def rates(make: Callable[[Optimizer], LRScheduler]) -> np.ndarray:
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    scheduler, found = make(optimizer), []
    for _ in range(STEPS + 5):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(found) <= STEPS:  # torch's cosine goes up again after its end
            scheduler.step()
    return np.asarray(found)


def record(variant: str, seed: int) -> Record:
    """What every optimizer makes of the same start."""
    rng = np.random.default_rng(seed)
    shapes = {"a_kernel": (5, 3), "a_bias": (3,), "scale": (4,)}
    start = {name: rng.normal(size=shape).astype(variant) for name, shape in shapes.items()}
    phase = {name: rng.normal(size=shape).astype(variant) for name, shape in shapes.items()}
    sides = rng.normal(size=(4, 136)).astype(variant)
    outputs: dict[str, np.ndarray] = {}
    for name, make in OPTIMIZERS.items():
        outputs |= {f"{name}/{k}": v for k, v in steps(make, start, phase).items()}
    clipped = steps(OPTIMIZERS["adamw"], start, phase, clip=True)
    outputs |= {f"adamw_clip/{k}": v for k, v in clipped.items()}
    large = [np.outer(sides[i], sides[i + 1][:130]) for i in (0, 2)]
    outputs |= {f"adafactor/{k}": v for k, v in adafactor(*large).items()}
    outputs |= {f"schedule/{name}": rates(make) for name, make in SCHEDULES.items()}
    about = {
        "reference": "torch.optim, timm.optim, transformers.Adafactor",
        "versions": versions("torch", "timm", "transformers"),
        "seed": seed,
        "options": dict(
            learning_rate=RATE,
            weight_decay=DECAY,
            momentum=MOMENTUM,
            b1=BETAS[0],
            b2=BETAS[1],
            eps=EPS,
        ),
        "clip_norm": CLIP,
        "steps": STEPS,
        "kept": KEPT,
        "note": "RMSprop, Adam and the like add eps to the root; torch's clipping adds 1e-6 to "
        "the norm; AdamW decays beside the gradient, Adam adds the decay to it",
    }
    inputs = {f"start/{k}": v for k, v in start.items()} | {
        f"phase/{k}": v for k, v in phase.items()
    }
    return Record(inputs | {"sides": sides}, outputs, about)
