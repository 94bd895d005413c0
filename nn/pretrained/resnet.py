"""He et al. 2016: files of transformers' ResNetForImageClassification, in both directions.

Published files name tensors resnet.encoder.stages.#.layers.#.layer.#.{convolution,normalization}.
Their kernels are (O, I, K, K), ours (K, K, I, O). They hold the running statistics of batch
normalisation too, which are variables of ours beside the parameters. `num_batches_tracked` is a
count that nothing uses; it is written as 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from nn.families.resnet import EXPANSION, Config
from nn.pretrained.table import Row, Table, dense, read, require

MODEL_TYPES = ("resnet",)
FAMILY = "resnet"
# What the format means when config.json leaves a key out.
DEFAULTS: Mapping[str, Any] = {
    "model_type": "resnet",
    "num_channels": 3,
    "embedding_size": 64,
    "hidden_sizes": None,  # None: those of ResNet-50
    "depths": None,
    "layer_type": "bottleneck",
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
    "id2label": None,  # None: num_labels
    "num_labels": 2,
}
TRACKED = "num_batches_tracked"


def config_from(raw: Mapping[str, Any]) -> Config:
    """The config of a model from the content of its config.json.

    Raises:
      ValueError: a value that is wrong, or that our ResNet cannot express.
    """
    c = read(raw, DEFAULTS)
    depths = (3, 4, 6, 3) if c["depths"] is None else tuple(c["depths"])
    sizes = (256, 512, 1024, 2048) if c["hidden_sizes"] is None else tuple(c["hidden_sizes"])
    config = Config(
        stages=depths,
        block=c["layer_type"],
        width=c["embedding_size"],
        num_classes=c["num_labels"] if c["id2label"] is None else len(c["id2label"]),
        in_channels=c["num_channels"],
        version="v1" if c["downsample_in_bottleneck"] else "v1.5",
    )
    require(
        "our ResNet",
        hidden_act=(c["hidden_act"], "relu"),
        downsample_in_first_stage=(c["downsample_in_first_stage"], False),
        hidden_sizes=(sizes, _sizes(config)),
    )
    return config


def config_to(config: Config) -> dict[str, Any]:
    """The content of config.json.

    Raises:
      ValueError: a file of this format cannot have a value of `config`.
    """
    require(
        "a ResNet file",
        stem=(config.stem, "imagenet"),
        shortcut=(config.shortcut, "projection"),
        norm_eps=(config.norm_eps, 1e-5),
        norm_momentum=(config.norm_momentum, 0.9),
    )
    labels = [f"LABEL_{i}" for i in range(config.num_classes)]
    return {
        "model_type": "resnet",
        "architectures": ["ResNetForImageClassification"],
        "num_channels": config.in_channels,
        "embedding_size": config.width,
        "hidden_sizes": list(_sizes(config)),
        "depths": list(config.stages),
        "layer_type": config.block,
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": config.version == "v1",
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }


def _sizes(config: Config) -> tuple[int, ...]:
    return tuple(config.features(stage) for stage in range(len(config.stages)))


@dataclasses.dataclass(frozen=True)
class _Kernel(Row):
    """A kernel, (K, K, I, O) here and (O, I, K, K) in the file."""

    @property
    def file_shape(self) -> tuple[int, ...]:
        return (self.shape[3], self.shape[2], *self.shape[:2])

    def split(self, tensor: np.ndarray) -> list[np.ndarray]:
        return [tensor.transpose(2, 3, 1, 0)]

    def join(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        return np.ascontiguousarray(leaves[0].transpose(3, 2, 0, 1))


def table(config: Config, names: Iterable[str] | None = None) -> Table:
    """What lies where.

    Raises:
      ValueError: a file of this format cannot have a value of `config`.
    """
    config_to(config)
    rows = _unit(
        "resnet.embedder.embedder", "stem_conv", "stem_norm", 7, config.in_channels, config.width
    )
    width = config.width
    for stage, blocks in enumerate(config.stages):
        wide = config.features(stage)
        inner = wide // EXPANSION[config.block]
        for i in range(blocks):
            theirs = f"resnet.encoder.stages.{stage}.layers.{i}"
            ours = f"stage_{stage}_block_{i}"
            # (size, channels in, channels out) of each convolution
            if config.block == "basic":
                shapes = [(3, width, inner), (3, inner, wide)]
            else:
                shapes = [(1, width, inner), (3, inner, inner), (1, inner, wide)]
            for n, shape in enumerate(shapes):
                rows += _unit(f"{theirs}.layer.{n}", f"{ours}/conv_{n}", f"{ours}/norm_{n}", *shape)
            if width != wide or (stage > 0 and i == 0):
                names = (f"{ours}/conv_shortcut", f"{ours}/norm_shortcut")
                rows += _unit(f"{theirs}.shortcut", *names, 1, width, wide)
            width = wide
    head = (width, config.num_classes)
    rows += dense("classifier.1", "params/output/kernel", head, 1, "params/output/bias")
    ends = ".running_mean"
    norms = [row.file.removesuffix(ends) for row in rows if row.file.endswith(ends)]
    counts = {f"{norm}.{TRACKED}": np.zeros((), np.int64) for norm in norms}
    return Table(tuple(rows), layers=0, ignored=rf".*\.{TRACKED}", constants=counts)


def _unit(theirs: str, conv: str, norm: str, size: int, width: int, features: int) -> list[Row]:
    """A convolution without bias and its batch normalisation."""
    shape = (size, size, width, features)
    return [
        _Kernel(f"{theirs}.convolution.weight", (f"params/{conv}/kernel",), shape),
        *(
            Row(f"{theirs}.normalization.{file}", (f"{collection}/{norm}/{name}",), (features,))
            for file, collection, name in (
                ("weight", "params", "scale"),
                ("bias", "params", "bias"),
                ("running_mean", "batch_stats", "mean"),
                ("running_var", "batch_stats", "var"),
            )
        ),
    ]
