"""Any data set of the TensorFlow Datasets catalogue that is prepared on disk, without TensorFlow.

Task, by option `task`: classify (an image and its class) or next_token (text as bytes, or lists of
integers). Size, splits, source and licence: those of the data set, see
https://www.tensorflow.org/datasets/catalog. It must lie under data.dir in TFDS's own layout,
<name>/[<config>/]<version>, in the array_record format; the error that says that it does not
gives the command that prepares it.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from launch.data import catalogue, images, packing, prepare
from launch.data.augment import Augment
from launch.data.source import (
    SPLITS,
    Example,
    Source,
    Spec,
    check_choice,
    check_range,
    check_sequence_length,
    data_directory,
)

_TASKS = ("classify", "next_token")
_CROPS = ("centre", "resized")


@dataclasses.dataclass(frozen=True)
class Config:
    """Which data set, its features and splits, and how images are cut."""

    dataset: str = ""  # "name", "name/config" or "name/config:version"; the newest version if none
    task: str = "classify"  # classify or next_token
    image_key: str = "image"  # feature: classify
    label_key: str = "label"  # feature: classify
    text_key: str = "text"  # feature: next_token; text, or a list of integers
    vocabulary: int = 256  # tokens: next_token; 256 for text
    train_split: str = "train"  # TFDS split of each of ours, slices such as "train[:90%]" included
    validation_split: str = "validation"
    test_split: str = "test"
    image_size: int = 224  # pixels
    channels: int = 3  # 1: grey, 3: RGB
    mean: str = "0.485,0.456,0.406"  # subtracted, per channel or one for all; images are 0..1
    std: str = "0.229,0.224,0.225"  # divided by, per channel or one for all
    train_crop: str = "resized"  # resized: random area and aspect; centre: as in evaluation
    min_area: float = 0.08  # the least area of a random crop, as a fraction of the picture
    crop_fraction: float = 0.875  # side of the centre crop, as a fraction of the shorter side
    flip: bool = True  # mirror training images half of the time
    pad: int = 0  # pixels of random shift of training images
    cutout: int = 0  # side of a random square of zeros, pixels
    mixup: float = 0.0  # alpha of mixup; 0: off

    def __post_init__(self) -> None:
        check_choice("data.task", self.task, _TASKS)
        check_choice("data.train_crop", self.train_crop, _CROPS)
        check_range("vocabulary", self.vocabulary, 2)
        check_range("image_size", self.image_size, 1, unit="pixels")
        check_range("min_area", self.min_area, 1e-4, 1)
        check_range("crop_fraction", self.crop_fraction, 1e-2, 1)
        check_range("mixup", self.mixup, 0)
        if self.channels not in (1, 3):
            raise ValueError(f"data.channels is {self.channels}: choose from 1, 3")
        for key in ("mean", "std"):
            values = self.per_channel(key)
            if key == "std" and not (values > 0).all():
                raise ValueError(f"data.std is {self.std!r}: every value must be above 0")
        self.augment()

    def augment(self) -> Augment:
        """The augmentation these options ask for, after the crop."""
        return Augment(pad=self.pad, flip=self.flip, cutout=self.cutout)

    def per_channel(self, key: str) -> np.ndarray:
        """Option `mean` or `std` as (channels,) float32."""
        text = getattr(self, key)
        try:
            values = np.array([float(part) for part in text.split(",")], np.float32)
        except ValueError:
            values = np.full(0, np.nan, np.float32)
        if len(values) not in (1, self.channels) or not np.isfinite(values).all():
            raise ValueError(
                f"data.{key} is {text!r}: it must be one number, or {self.channels} with commas "
                "between, such as '0.5'"
            )
        return np.broadcast_to(values, (self.channels,))


class Images(Source):
    """Pictures, decoded when they are read."""

    def __init__(self, spec: Spec, split: str, options: Config, records: Any) -> None:
        super().__init__(spec, split, options)
        self._records = records
        self._mean, self._std = options.per_channel("mean"), options.per_channel("std")
        self._augment = options.augment()
        self.augments = bool(self._augment) or options.train_crop == "resized"
        self.mixup = options.mixup

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        return self._cut(self._records[index], None)

    def augmented(self, index: int, generator: np.random.Generator) -> Example:
        return self._augment(self._cut(self._records[index], generator), generator)

    def _cut(self, record: Any, generator: np.random.Generator | None) -> Example:
        """The record's image, cropped (at random with `generator`), and its label."""
        options: Config = self.options
        size, encoded = options.image_size, record[options.image_key]
        if generator is not None and options.train_crop == "resized":
            picture = images.decode(encoded, options.channels, at_least=2 * size)
            picture = images.random_resized_crop(picture, size, options.min_area, generator)
        else:
            side = round(size / options.crop_fraction)
            picture = images.decode(encoded, options.channels, at_least=side)
            picture = images.centre_crop(picture, size, options.crop_fraction)
        pixels = images.to_array(picture, self._mean, self._std)
        return {"inputs": pixels, "labels": np.array(record[options.label_key], np.int32)}


def open_source(
    options: Config,
    *,
    split: str,
    sequence_length: int = 256,
    directory: str | os.PathLike[str] | None = None,
) -> Source:
    """One split. Raises FileNotFoundError, with the command to run, when it is not on disk."""
    check_choice("split", split, SPLITS)
    root = data_directory(directory)
    path = catalogue.find(root, options.dataset)
    wanted = getattr(options, f"{split}_split")
    catalogue.check_split(path, wanted, f"data.{split}_split")
    if options.task == "next_token":
        return _packed(options, path, split, wanted, sequence_length, root)
    features = catalogue.features(path)
    catalogue.check_feature(path, options.image_key, "Image", "data.image_key")
    catalogue.check_feature(path, options.label_key, "ClassLabel", "data.label_key")
    shape = (options.image_size, options.image_size, options.channels)
    classes = features[options.label_key].num_classes
    spec = Spec("classify", shape, classes, *catalogue.identity(path))
    records = prepare.open_records(path, wanted, raw=[options.image_key])
    return Images(spec, split, options, records)


def _packed(
    options: Config, path: Path, split: str, wanted: str, sequence_length: int, root: Path
) -> Source:
    """Rows of the split's documents; the stream of tokens is kept on disk, in <root>/packed."""
    check_sequence_length(sequence_length)
    key = options.text_key
    catalogue.check_feature(path, key, ("Text", "Tensor", "Sequence"), "data.text_key")
    name, version = catalogue.identity(path)
    kept = re.sub(r"[^A-Za-z0-9._-]", "-", f"{name}-{version}-{key}-{wanted}-{options.vocabulary}")
    records = prepare.open_records(path, wanted)

    def documents() -> Iterator[np.ndarray]:
        for record in records:
            text = record[key]
            yield np.frombuffer(text, np.uint8) if isinstance(text, bytes) else np.asarray(text)

    def fill(target: Path) -> None:
        packing.write(documents(), options.vocabulary, target)

    try:
        kept_in = prepare.ensure(root / "packed" / kept, fill)
    except PermissionError:  # shared data directories are often read-only
        kept_in = prepare.ensure(data_directory() / "packed" / kept, fill)
    stream = packing.read(kept_in)
    return packing.PackedSource(
        stream,
        sequence_length,
        name=name,
        version=version,
        vocabulary=options.vocabulary,
        split=split,
        options=options,
    )
