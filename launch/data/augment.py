"""Augmentation of images, per example, and mixup, per batch. Images are (H, W, C) arrays."""

from __future__ import annotations

import dataclasses

import numpy as np

from launch.data import randomness
from launch.data.source import Example, Spec, check_range


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random crop after padding, flip, and cutout of `inputs`, in this order; 0 or False is off."""

    pad: int = 0  # pixels added on each side before a crop of the old size
    flip: bool = False  # mirror left and right, half of the time
    cutout: int = 0  # side of the square that is set to zero, pixels

    def __post_init__(self) -> None:
        check_range("pad", self.pad, 0, unit="pixels")
        check_range("cutout", self.cutout, 0, unit="pixels")

    def __bool__(self) -> bool:
        return bool(self.pad or self.flip or self.cutout)

    def __call__(self, example: Example, generator: np.random.Generator) -> Example:
        image = example["inputs"]
        if self.pad:
            image = padded_crop(image, self.pad, generator)
        if self.flip:
            image = random_flip(image, generator)
        if self.cutout:
            image = cutout(image, self.cutout, generator)
        return {**example, "inputs": image}


def random_flip(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The image, mirrored left and right half of the time."""
    return image[:, ::-1] if generator.random() < 0.5 else image


def padded_crop(image: np.ndarray, pad: int, generator: np.random.Generator) -> np.ndarray:
    """A crop of the image's own size from the image with `pad` zeros on each side."""
    height, width = image.shape[:2]
    framed = np.zeros((height + 2 * pad, width + 2 * pad, image.shape[2]), image.dtype)
    framed[pad : pad + height, pad : pad + width] = image
    top, left = generator.integers(0, 2 * pad + 1, 2)
    return framed[top : top + height, left : left + width]


def cutout(image: np.ndarray, side: int, generator: np.random.Generator) -> np.ndarray:
    """The image with a square of zeros, its centre anywhere (DeVries and Taylor, 2017)."""
    height, width = image.shape[:2]
    row, column = generator.integers(0, (height, width))
    top, left = row - side // 2, column - side // 2
    result = image.copy()
    result[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = 0
    return result


def check_mixup(alpha: float, spec: Spec, rows: int) -> None:
    """ValueError where mixup with `alpha` cannot be done on shares of `rows` rows."""
    check_range("mixup", alpha, 0)
    if spec.task != "classify":
        raise ValueError(f"data.mixup mixes classes: data set {spec.name} is for {spec.task}")
    if rows % 2:
        raise ValueError(
            f"data.mixup pairs neighbouring rows: {rows} rows per share must be even; "
            f"nearest: {rows + 1}"
        )


def mixup(
    batch: Example, alpha: float, seed: int, step: int, rows: np.ndarray, batch_size: int
) -> Example:
    """Mix each example with its neighbour (Zhang et al., 2018, "mixup", equation 1).

    Rows 2k and 2k+1 of the global batch are partners; the batch is shuffled, so the partner is as
    good as any other, and no process needs the rows of another. Adds to the batch
      labels_mixed (B,) int32: the partner's label;
      mix (B,) float32: the weight of the example itself, drawn from Beta(alpha, alpha),
    and makes `inputs` mix * own + (1 - mix) * partner's. The loss to train on is
    mix * loss(labels) + (1 - mix) * loss(labels_mixed).

    Args:
      rows: the places of these rows in the global batch of `batch_size` rows; with each row, its
        partner.
    """
    images, labels = batch["inputs"], batch["labels"]
    weights = randomness.generator(seed, "mixup", step).beta(alpha, alpha, batch_size)
    mix = weights[rows].astype(np.float32)
    partner = np.arange(len(rows)) ^ 1
    own = mix.reshape(-1, *[1] * (images.ndim - 1))
    mixed = own * images + (1 - own) * images[partner]
    return {**batch, "inputs": mixed, "labels_mixed": labels[partner], "mix": mix}
