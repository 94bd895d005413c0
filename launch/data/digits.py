"""Handwritten digits: grey images of 8 x 8 pixels with 17 levels, 10 classes.

Task: classify. Size: 1,797 images: train 1,297, validation 200, test 300; a fixed split,
stratified by class.
Source: bundled with scikit-learn, the test part of
https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits.
Licence: CC-BY-4.0.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from launch.data import images, prepare, tables
from launch.data.augment import Augment
from launch.data.source import (
    SPLITS,
    ArraySource,
    Example,
    Spec,
    check_choice,
    check_range,
    data_directory,
)

_LEVELS = 16  # the brightest pixel
_SCALINGS = ("standard", "unit")


@dataclasses.dataclass(frozen=True)
class Config:
    """The form of the images, and the augmentation of the train split."""

    flatten: bool = False  # one vector of pixels in place of (size, size, 1)
    image_size: int = 8  # pixels; larger sizes are interpolated
    scaling: str = "unit"  # unit: 0..1; standard: each pixel mean 0, variance 1 on the train split
    pad: int = 0  # pixels of random shift
    cutout: int = 0  # side of a random square of zeros, pixels
    mixup: float = 0.0  # alpha of mixup; 0: off

    def __post_init__(self) -> None:
        check_range("image_size", self.image_size, 8, 1024, unit="pixels")
        check_choice("data.scaling", self.scaling, _SCALINGS)
        check_range("mixup", self.mixup, 0)
        self.augment()

    def augment(self) -> Augment:
        """The augmentation these options ask for."""
        return Augment(pad=self.pad, cutout=self.cutout)


class Digits(ArraySource):
    """Images in memory, augmented as images and then flattened when asked for."""

    def __init__(self, spec: Spec, split: str, options: Config, arrays: Example) -> None:
        super().__init__(spec, split, options, arrays)
        self._augment = options.augment()
        self.augments = bool(self._augment)
        self.mixup = options.mixup

    def augmented(self, index: int, generator: np.random.Generator) -> Example:
        example = self[index]
        shape = example["inputs"].shape
        size = self.options.image_size
        image = {**example, "inputs": example["inputs"].reshape(size, size, 1)}
        changed = self._augment(image, generator)
        return {**changed, "inputs": changed["inputs"].reshape(shape)}


def open_source(
    options: Config,
    *,
    split: str,
    sequence_length: int = 0,
    directory: str | os.PathLike[str] | None = None,
) -> Digits:
    """One split: `inputs` (size, size, 1), or (size * size,) with `flatten`; `labels` 0 to 9."""
    del sequence_length  # there are no sequences
    check_choice("split of data set digits", split, SPLITS)
    path = prepare.build(
        data_directory(directory),
        "digits",
        tables.VERSION,
        features=_features,
        splits=_splits,
        description="Handwritten digits, 8 x 8 pixels with 17 levels.",
        homepage="https://archive.ics.uci.edu/dataset/80",
        licence="CC-BY-4.0",
    )
    pixels, labels = _images(path, split, options)
    if options.scaling == "standard":
        train = pixels if split == "train" else _images(path, "train", options)[0]
        pixels = tables.standardized(pixels, train)
    size = options.image_size
    shape = (size * size,) if options.flatten else (size, size, 1)
    arrays = {"inputs": pixels.reshape(-1, *shape), "labels": labels}
    return Digits(Spec("classify", shape, 10, "digits", tables.VERSION), split, options, arrays)


def _features() -> Mapping[str, Any]:
    import tensorflow_datasets as tfds

    image = tfds.features.Image(shape=(8, 8, 1), encoding_format="png")
    return {"image": image, "label": tfds.features.ClassLabel(num_classes=10)}


def _splits() -> Mapping[str, list[Mapping[str, Any]]]:
    from sklearn import datasets  # takes seconds, needed only to prepare

    pixels, labels = datasets.load_digits(return_X_y=True)
    pictures = pixels.reshape(-1, 8, 8).astype(np.uint8)
    rows = tables.stratified(labels, (1297, 200, 300))
    return {
        split: [{"image": images.encode_png(pictures[i]), "label": int(labels[i])} for i in chosen]
        for split, chosen in rows.items()
    }


def _images(path: Any, split: str, options: Config) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, size, size) float32 in 0..1 and labels (N,) int32."""
    records = list(prepare.open_records(path, split, raw=["image"]))
    pictures = [images.decode(record["image"], channels=1) for record in records]
    pixels = np.stack([np.asarray(picture, np.float32) / _LEVELS for picture in pictures])
    if options.image_size != 8:
        pixels = np.stack([images.enlarged(image, options.image_size) for image in pixels])
    return pixels, np.array([record["label"] for record in records], np.int32)
