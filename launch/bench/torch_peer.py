"""The PyTorch peer: a minimal GPT-2 with `scaled_dot_product_attention`, eager or compiled.

Legend: B batch, T positions, D width, H heads.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from launch.bench import torch_job
from launch.bench.job import Job
from launch.bench.workloads import Numbers, Text

device = torch_job.device


class Block(nn.Module):
    def __init__(self, size: Text) -> None:
        super().__init__()
        D = size.dim
        self.heads = size.heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(D), nn.LayerNorm(D)
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.up, self.down = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, D = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(B, T, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(h.transpose(1, 2).reshape(B, T, D))
        h = F.gelu(self.up(self.mlp_norm(x)), approximate="tanh")
        return x + self.down(h)


class GPT(nn.Module):
    """Tokens and targets (B, T) -> mean loss."""

    def __init__(self, size: Text) -> None:
        super().__init__()
        self.embed = nn.Embedding(size.vocabulary, size.dim)
        self.positions = nn.Embedding(size.length, size.dim)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.dim)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.embed.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def decoder(size: Text, where: str, compiled: bool = False) -> Job:
    """A training step of the GPT."""
    torch.manual_seed(0)
    tokens = torch.from_numpy(size.tokens()).long().to(torch_job.place(where))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    return torch_job.trainer(GPT(size), lambda model: model(inputs, targets), where, {}, compiled)


def matmul(size: Numbers, where: str) -> Job:
    """A product of two square matrices."""
    dtype = torch.float32 if where == "cpu" else torch.bfloat16
    x = torch.from_numpy(size.square()).to(torch_job.place(where), dtype)
    return torch_job.function(lambda: x @ x, where, {})


def copy(size: Numbers, where: str) -> Job:
    """x + 1."""
    x = torch.from_numpy(size.vector()).to(torch_job.place(where))
    return torch_job.function(lambda: x + 1, where, {})
