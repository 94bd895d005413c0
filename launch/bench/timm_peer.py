"""The timm peer: its ResNet-18, channels last."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from launch.bench import torch_job
from launch.bench.job import Job
from launch.bench.workloads import Images

torch_job.repair_torchvision()
import timm  # noqa: E402

device = torch_job.device


def resnet18(size: Images, where: str) -> Job:
    """A training step of ResNet-18, running statistics included."""
    torch.manual_seed(0)
    target = torch_job.place(where)
    model = timm.create_model("resnet18", num_classes=size.classes)
    model = model.to(memory_format=torch.channels_last)
    images, labels = size.examples()
    inputs = torch.from_numpy(images).permute(0, 3, 1, 2).to(target)
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    targets = torch.from_numpy(labels).long().to(target)
    return torch_job.trainer(
        model,
        lambda run: F.cross_entropy(run(inputs), targets),
        where,
        {"timm": timm.__version__},
    )
