"""Residual networks: convolutions in blocks that add to what they were given.

He et al. 2016a, "Deep residual learning" (table 1: ImageNet; section 4.2: CIFAR). The blocks are
those with the normalisation after each convolution (version 1); in version 1.5, torchvision's and
the default, a bottleneck halves the image in its 3x3 convolution and not in the 1x1 before it.

Legend: B batch, H and W height and width of an image, C channels.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from nn import activations, initializers, names
from nn.layers.conv import Conv, global_avg_pool, max_pool
from nn.layers.dense import Dense
from nn.layers.norm import BatchNorm
from nn.layers.stack import remat_policy
from nn.parallel import Layer, gather_channels

EXPANSION = {"basic": 1, "bottleneck": 4}  # channels out of a block over those inside it
STEMS = dict.fromkeys(("imagenet", "cifar"))
SHORTCUTS = dict.fromkeys(("projection", "pad"))
VERSIONS = dict.fromkeys(("v1", "v1.5"))


@dataclasses.dataclass(frozen=True)
class Config:
    stages: tuple[int, ...] = (2, 2, 2, 2)  # blocks; each stage but the first halves the image
    block: str = "basic"  # basic: two 3x3 | bottleneck: 1x1, 3x3, 1x1 to four times the channels
    stem: str = "imagenet"  # imagenet: 7x7 stride 2 and 3x3 max pool stride 2 | cifar: 3x3
    width: int = 64  # channels of the stem and inside the first stage; each stage doubles them
    num_classes: int = 1000
    in_channels: int = 3
    version: str = "v1.5"  # v1.5 | v1: stride in the 3x3 of a bottleneck, or in its first 1x1
    shortcut: str = "projection"  # where sizes change: projection (option B of the paper) | pad
    # with zeros (option A, no parameters)
    zero_init: bool = False  # last scale of each block 0, so that it starts as the identity
    # (Goyal et al. 2017, section 5.1)
    norm_eps: float = 1e-5
    norm_momentum: float = 0.9  # share of the running statistics that an update keeps
    remat: str = "none"  # none | block | dots | names | offload: see nn/layers/stack.py
    remat_names: tuple[str, ...] = ("conv",)  # what names keeps and offload sends to the host

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("model.stages=(): needs at least one stage")
        for size in (self.width, self.num_classes, self.in_channels, *self.stages):
            if size < 1:
                raise ValueError(f"model: a size of {size}; all must be at least 1")
        if not 0.0 <= self.norm_momentum < 1.0:
            raise ValueError(f"model.norm_momentum={self.norm_momentum}: must be in [0, 1)")
        names.lookup("model.block", self.block, EXPANSION)
        names.lookup("model.stem", self.stem, STEMS)
        names.lookup("model.version", self.version, VERSIONS)
        names.lookup("model.shortcut", self.shortcut, SHORTCUTS)
        remat_policy(self.remat, self.remat_names)

    @property
    def in_order(self) -> bool:
        """Neighbouring rows of an image lie beside each other on `context`."""
        return True

    def features(self, stage: int) -> int:
        """Channels out of a stage."""
        return self.width * 2**stage * EXPANSION[self.block]


class Block(Layer):
    """relu(x + f(x)); the channels between its convolutions are split over `tensor`.

    stage: sets the channels; stride: 2 halves the image.
    """

    config: Config
    stage: int
    stride: int = 1
    train: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H', W', C'), all channels on every shard."""
        c = self.config
        wide = c.features(self.stage)
        inner = wide // EXPANSION[c.block]
        zero = initializers.zeros if c.zero_init else initializers.ones
        if c.block == "basic":
            h = self._column(x, "0", inner, 3, self.stride)
            h = self._row(h, "1", inner, wide, 3, zero)
        else:
            first, second = (self.stride, 1) if c.version == "v1" else (1, self.stride)
            h = self._column(x, "0", inner, 1, first)
            h = self._column(gather_channels(h, "channels"), "1", inner, 3, second)
            h = self._row(h, "2", inner, wide, 1, zero)
        return activations.relu(h + self._shortcut(x, wide))

    def _column(self, x: jax.Array, name: str, features: int, size: int, stride: int) -> jax.Array:
        """Convolution, norm and activation from all channels of x to this shard's."""
        conv = _conv(features, size, stride, ("conv_in", "channels"), f"conv_{name}")
        y = checkpoint_name(conv(x), "conv")
        return activations.relu(self._norm(y, name, "channels"))

    def _row(
        self, x: jax.Array, name: str, width: int, features: int, size: int, scale_init: Any
    ) -> jax.Array:
        """Convolution and norm from this shard's of `width` channels to all `features`."""
        conv = _conv(features, size, 1, ("channels", "conv_in"), f"conv_{name}", width)
        return self._norm(checkpoint_name(conv(x), "conv"), name, None, scale_init)

    def _shortcut(self, x: jax.Array, features: int) -> jax.Array:
        if self.stride == 1 and x.shape[-1] == features:
            return x
        if self.config.shortcut == "pad":
            x = x[:, :: self.stride, :: self.stride]
            return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, features - x.shape[-1])))
        # Each shard projects to its own channels; the result is the same on all of them.
        names_out = ("conv_in", "channels")
        y = _conv(features, 1, self.stride, names_out, "conv_shortcut")(x)
        return gather_channels(self._norm(y, "shortcut", "channels"), "channels", same=True)

    def _norm(
        self, x: jax.Array, name: str, split: str | None, scale_init: Any = initializers.ones
    ) -> jax.Array:
        return _norm(self.config, self.train, split, scale_init, f"norm_{name}")(x)


class Model(Layer):
    """(B, H, W, C) -> float32 logits (B, num_classes). Sows "stage_i", each stage's output."""

    SEQUENCE: ClassVar[tuple[str, ...]] = ("inputs",)  # `context` splits the height of images

    config: Config
    dtype: Any = jnp.float32  # compute dtype
    train: bool = False  # normalise by the batch and update the running statistics

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        if x.ndim != 4 or x.shape[-1] != c.in_channels:
            raise ValueError(
                f"model.in_channels={c.in_channels}: inputs must be images (batch, height, width, "
                f"{c.in_channels}), got shape {x.shape}"
            )
        size, stride = (7, 2) if c.stem == "imagenet" else (3, 1)
        x = _conv(c.width, size, stride, (None, "conv_in"), "stem_conv")(x.astype(self.dtype))
        x = activations.relu(_norm(c, self.train, None, initializers.ones, "stem_norm")(x))
        if c.stem == "imagenet":
            x = max_pool(x, 3, 2, padding=1, split=True)
        policy = remat_policy(c.remat, c.remat_names)
        block = Block if policy is None else nn.remat(Block, policy=policy, prevent_cse=True)
        for stage, blocks in enumerate(c.stages):
            for i in range(blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                x = block(c, stage, stride, self.train, name=f"stage_{stage}_block_{i}")(x)
            self.sow("intermediates", f"stage_{stage}", x)
        head = Dense(c.num_classes, names=("embed", None), name="output")
        logits = head(global_avg_pool(x))
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def _conv(
    features: int,
    size: int,
    stride: int,
    channel_names: tuple[str | None, str | None],
    name: str,
    in_features: int | None = None,
) -> Conv:
    """A square convolution without bias, padded by half its size."""
    return Conv(
        features,
        (size, size),
        strides=stride,
        padding=size // 2,
        names=channel_names,
        bias=False,
        split=True,
        in_features=in_features,
        # By the outputs: keeps the size of the gradient (He et al. 2015, section 2.2).
        kernel_init=initializers.variance_scaling(2.0, "out", "normal", in_axes=-2, out_axes=-1),
        name=name,
    )


def _norm(config: Config, train: bool, split: str | None, scale_init: Any, name: str) -> BatchNorm:
    return BatchNorm(
        train=train,
        eps=config.norm_eps,
        momentum=config.norm_momentum,
        split=split,
        scale_init=scale_init,
        name=name,
    )


def _cifar(blocks: int) -> Config:
    """6n + 2 layers (He et al. 2016a, section 4.2)."""
    return Config((blocks,) * 3, stem="cifar", width=16, num_classes=10, shortcut="pad")


PRESETS = {
    "resnet18": Config((2, 2, 2, 2)),
    "resnet34": Config((3, 4, 6, 3)),
    "resnet50": Config((3, 4, 6, 3), "bottleneck"),
    "resnet101": Config((3, 4, 23, 3), "bottleneck"),
    "resnet152": Config((3, 8, 36, 3), "bottleneck"),
    "resnet20": _cifar(3),
    "resnet32": _cifar(5),
    "resnet44": _cifar(7),
    "resnet56": _cifar(9),
}


OBJECTIVES = ("classify",)  # those that train it


def tiny() -> Config:
    """A model that a CPU trains in a second."""
    return Config((1, 1), "bottleneck", "cifar", width=8, num_classes=10, in_channels=2)


def example(config: Config, batch: int) -> tuple[jax.Array, ...]:
    """Positional inputs of the model: images (batch, height, width, channels)."""
    side = 32 if config.stem == "imagenet" else 8
    shape = (batch, side, side - 2, config.in_channels)
    size = batch * side * (side - 2) * config.in_channels
    return (jnp.sin(jnp.arange(size, dtype=jnp.float32)).reshape(shape),)
