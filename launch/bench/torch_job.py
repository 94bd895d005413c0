"""Jobs of the PyTorch peers: an eager or compiled step with fused AdamW."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from launch.bench.job import Job
from launch.bench.workloads import B1, B2, CLIP, DECAY, EPS, RATE

_libraries: list[torch.library.Library] = []  # their operators live as long as they do


def repair_torchvision() -> None:
    """Make torchvision importable, which timm and transformers import; for a worker only.

    Its usual build fails beside a CPU build of PyTorch, for want of operators no model here uses.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _libraries.append(library)


def device() -> str:
    return "accelerator" if torch.cuda.is_available() else "cpu"


def place(where: str) -> torch.device:
    """The device of `where`, and the threads that the environment sets."""
    if where == "accelerator" and not torch.cuda.is_available():
        raise RuntimeError("no accelerator for PyTorch here: this build or machine has no CUDA")
    if "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    return torch.device("cpu" if where == "cpu" else "cuda")


def trainer(
    model: torch.nn.Module,
    loss: Callable[[torch.nn.Module], torch.Tensor],
    where: str,
    versions: dict[str, str],
    compiled: bool = False,
) -> Job:
    """loss: of the model on its batch. bfloat16 products on an accelerator."""
    target = place(where)
    model = model.to(target).train()
    decay: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for parameter in model.parameters():
        (decay if parameter.ndim >= 2 else rest).append(parameter)
    optimizer = torch.optim.AdamW(
        [dict(params=decay, weight_decay=DECAY), dict(params=rest, weight_decay=0.0)],
        lr=RATE,
        betas=(B1, B2),
        eps=EPS,
        fused=True,
    )
    run: Any = torch.compile(model) if compiled else model

    def step() -> torch.Tensor:
        with torch.autocast(target.type, torch.bfloat16, enabled=where != "cpu"):
            value = loss(run)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.detach()

    return _job(step, where, versions, model, loss=float)


def function(
    call: Callable[[], Any], where: str, versions: dict[str, str], model: Any = None
) -> Job:
    """A job without state."""
    return _job(call, where, versions, model, loss=None)


def _job(
    step: Callable[[], Any], where: str, versions: dict[str, str], model: Any, loss: Any
) -> Job:
    parameters = sum(p.numel() for p in model.parameters()) if model is not None else 0
    on_gpu = where != "cpu"
    return Job(
        step=step,
        wait=lambda _: torch.cuda.synchronize() if on_gpu else None,
        device=where,
        versions={"torch": torch.__version__, "numpy": np.__version__, **versions},
        parameters=parameters,
        loss=loss,
        memory=lambda: torch.cuda.max_memory_allocated() if on_gpu else None,
    )
