"""What is timed: the workloads, their sizes, their data, and the peers that can run them.

NumPy only, so that a peer's process holds nothing of ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

SIZES = ("tiny", "cpu", "accelerator")  # tiny: for tests


@dataclasses.dataclass(frozen=True)
class Text:
    """A GPT-2-like decoder and its rows of tokens: layer norm, biases, learned positions, tied.

    length: of a training row, or of a prompt. new_tokens: generated after it; 0 in training.
    """

    vocabulary: int
    batch: int
    length: int
    layers: int
    dim: int
    heads: int
    new_tokens: int = 0

    def tokens(self) -> np.ndarray:
        """(batch, length + 1) int32, random: `length` inputs, and the targets one place later."""
        shape = (self.batch, self.length + 1)
        return np.random.default_rng(0).integers(0, self.vocabulary, shape).astype(np.int32)

    @property
    def work(self) -> int:
        """Tokens per step."""
        return self.batch * (self.new_tokens or self.length)


@dataclasses.dataclass(frozen=True)
class Images:
    """ResNet-18 on random images (batch, side, side, 3) in `classes` classes."""

    classes: int
    batch: int
    side: int

    def examples(self) -> tuple[np.ndarray, np.ndarray]:
        """Images, channels last, float32, and labels (batch,) int32."""
        random = np.random.default_rng(0)
        images = random.normal(size=(self.batch, self.side, self.side, 3)).astype(np.float32)
        return images, random.integers(0, self.classes, self.batch).astype(np.int32)

    @property
    def work(self) -> int:
        """Images per step."""
        return self.batch


@dataclasses.dataclass(frozen=True)
class Numbers:
    """A calibration row: a square matrix of `size` x `size` numbers, or a vector of `size`."""

    size: int
    work = 1  # per step

    def square(self) -> np.ndarray:
        return np.random.default_rng(0).normal(size=(self.size, self.size)).astype(np.float32)

    def vector(self) -> np.ndarray:
        return np.random.default_rng(0).random(self.size, np.float32)


@dataclasses.dataclass(frozen=True)
class Workload:
    """kind: the function that ours.py and the peers' files export for it.

    work, unit: what a step gets through, for the rate.
    """

    about: str
    kind: str
    peers: tuple[str, ...]
    sizes: Mapping[str, Text | Images | Numbers]
    unit: str


_TRAINERS = ("flax", "torch", "torch-compile", "transformers")


def _decoder(vocabulary: int, large_batch: int) -> Workload:
    return Workload(
        about=f"decoder, training step with AdamW, vocabulary {vocabulary}",
        kind="decoder",
        peers=_TRAINERS,
        sizes={
            "tiny": Text(vocabulary // 4, 2, 16, 2, 32, 4),
            "cpu": Text(vocabulary, 8, 256, 6, 384, 6),
            "accelerator": Text(vocabulary, large_batch, 1024, 12, 768, 12),
        },
        unit="tokens",
    )


def _generate(vocabulary: int, batch: int) -> Workload:
    return Workload(
        about=f"greedy generation with cache, vocabulary {vocabulary}, batch {batch}",
        kind="generate",
        peers=("transformers", "transformers-static"),
        sizes={
            "tiny": Text(vocabulary // 4, batch, 4, 2, 32, 4, new_tokens=8),
            "cpu": Text(vocabulary, batch, 32, 6, 384, 6, new_tokens=128),
            "accelerator": Text(vocabulary, batch, 32, 12, 768, 12, new_tokens=128),
        },
        unit="tokens",
    )


WORKLOADS: Mapping[str, Workload] = {
    "decoder": _decoder(256, large_batch=64),
    "decoder-large-vocabulary": _decoder(50304, large_batch=32),
    **{
        f"generate-{vocabulary}-batch-{batch}": _generate(vocabulary, batch)
        for vocabulary in (256, 50304)
        for batch in (1, 8)
    },
    "resnet18": Workload(
        about="ResNet-18, training step with AdamW",
        kind="resnet18",
        peers=("flax", "timm"),
        sizes={
            "tiny": Images(10, 2, 16),
            "cpu": Images(10, 32, 32),
            "accelerator": Images(1000, 256, 224),
        },
        unit="images",
    ),
    "matmul": Workload(
        about="calibration: one square matrix product",
        kind="matmul",
        peers=("torch",),
        sizes={"tiny": Numbers(64), "cpu": Numbers(2048), "accelerator": Numbers(8192)},
        unit="products",
    ),
    "copy": Workload(
        about="calibration: read a vector, add 1, write it",
        kind="copy",
        peers=("torch",),
        sizes={"tiny": Numbers(2**10), "cpu": Numbers(2**26), "accelerator": Numbers(2**30)},
        unit="vectors",
    ),
}


@dataclasses.dataclass(frozen=True)
class Peer:
    """module: imported in the peer's own process only. packages: what it needs of the extra."""

    module: str
    packages: tuple[str, ...] = ()
    compiled: bool = False


OURS = Peer("launch.bench.ours")
PEERS: Mapping[str, Peer] = {
    "flax": Peer("launch.bench.flax_peer"),
    "torch": Peer("launch.bench.torch_peer", ("torch",)),
    "torch-compile": Peer("launch.bench.torch_peer", ("torch",), compiled=True),
    "transformers": Peer("launch.bench.transformers_peer", ("torch", "transformers")),
    "transformers-static": Peer("launch.bench.transformers_static_peer", ("torch", "transformers")),
    "timm": Peer("launch.bench.timm_peer", ("torch", "timm")),
}

# AdamW and clipping, the same on all sides; decay on kernels only.
RATE, B1, B2, EPS, DECAY, CLIP = 3e-4, 0.9, 0.95, 1e-8, 0.1, 1.0
