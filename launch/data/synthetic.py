"""Made-up examples, for tests and for measuring speed without a disk.

Task, by option `task`: random_tokens, copy, reverse (next_token); teacher (regress);
random_images (classify). Size: option `examples` per split; the splits differ. Every example is a
pure function of (content_seed, split, index); nothing is stored. No source, no licence.
"""

from __future__ import annotations

import dataclasses
import os

import numpy as np

from launch.data import randomness
from launch.data.source import (
    SPLITS,
    Example,
    Source,
    Spec,
    check_choice,
    check_range,
    check_sequence_length,
)

VERSION = "1.0.0"
KINDS = ("copy", "random_images", "random_tokens", "reverse", "teacher")


@dataclasses.dataclass(frozen=True)
class Config:
    """Which task, and its sizes; each task reads those that concern it."""

    task: str = "random_tokens"  # copy, random_images, random_tokens, reverse or teacher
    examples: int = 4096  # per split
    vocabulary: int = 256  # tokens: random_tokens, copy, reverse
    inputs: int = 16  # features: teacher
    hidden: int = 32  # units of the teacher network
    outputs: int = 4  # regression targets: teacher
    image_size: int = 32  # pixels: random_images
    channels: int = 3  # random_images
    classes: int = 10  # random_images
    noise: float = 0.1  # standard deviation of what is added to the class's image or the target
    content_seed: int = 0  # another number, other data

    def __post_init__(self) -> None:
        check_choice("data.task", self.task, KINDS)
        sizes = ("examples", "inputs", "hidden", "outputs", "image_size", "channels", "classes")
        for key in sizes:
            check_range(key, getattr(self, key), 1)
        check_range("vocabulary", self.vocabulary, 2)
        check_range("noise", self.noise, 0)


class Synthetic(Source):
    """Examples computed when they are asked for."""

    def __init__(self, spec: Spec, split: str, options: Config) -> None:
        length = {"sequence_length": spec.input_shape[0]} if spec.task == "next_token" else {}
        super().__init__(spec, split, options, **length)
        self._shared = _shared(options)

    def __len__(self) -> int:
        return int(self.options.examples)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        generator = randomness.generator(self.options.content_seed, self.split, index)
        if self.spec.task == "next_token":
            return _tokens(self.options, self.spec.input_shape[0], generator)
        if self.spec.task == "regress":
            return self._regression(generator)
        label = generator.integers(self.options.classes)
        image = generator.standard_normal(self.spec.input_shape, np.float32)
        image = image * np.float32(self.options.noise) + self._shared["images"][label]
        return {"inputs": image, "labels": np.int32(label)}

    def _regression(self, generator: np.random.Generator) -> Example:
        x = generator.standard_normal(self.options.inputs, np.float32)
        y = np.tanh(x @ self._shared["first"]) @ self._shared["second"]
        noise = generator.standard_normal(self.options.outputs, np.float32)
        return {"inputs": x, "targets": y + noise * np.float32(self.options.noise)}


def open_source(
    options: Config,
    *,
    split: str,
    sequence_length: int = 256,
    directory: str | os.PathLike[str] | None = None,
) -> Synthetic:
    """One split. Token tasks have rows of `sequence_length` tokens, one document each."""
    del directory  # nothing is stored
    check_choice("split of data set synthetic", split, SPLITS)
    if options.task == "teacher":
        spec = Spec("regress", (options.inputs,), options.outputs, "synthetic", VERSION)
    elif options.task == "random_images":
        shape = (options.image_size, options.image_size, options.channels)
        spec = Spec("classify", shape, options.classes, "synthetic", VERSION)
    else:
        check_sequence_length(sequence_length)
        if options.task != "random_tokens":
            check_range("sequence_length", sequence_length, 2, unit="tokens for this task")
        spec = Spec("next_token", (sequence_length,), options.vocabulary, "synthetic", VERSION)
    return Synthetic(spec, split, options)


def _shared(options: Config) -> dict[str, np.ndarray]:
    """What all splits share: the teacher's weights, or one image per class."""
    generator = randomness.generator(options.content_seed, "shared", 0)
    if options.task == "teacher":
        first = generator.standard_normal((options.inputs, options.hidden), np.float32)
        second = generator.standard_normal((options.hidden, options.outputs), np.float32)
        return {
            "first": first / np.float32(np.sqrt(options.inputs)),
            "second": second / np.float32(np.sqrt(options.hidden)),
        }
    if options.task == "random_images":
        shape = (options.classes, options.image_size, options.image_size, options.channels)
        return {"images": generator.standard_normal(shape, np.float32)}
    return {}


def _tokens(options: Config, length: int, generator: np.random.Generator) -> Example:
    """A row of one document.

    copy, reverse: n random tokens from 1 on, the separator 0, and the n tokens again, in the same
    or the opposite order; the mask is 1 on that last part, which alone can be predicted.
    """
    mask = np.ones(length, np.float32)
    if options.task == "random_tokens":
        tokens = generator.integers(0, options.vocabulary, length + 1, np.int32)
    else:
        count = length // 2
        word = generator.integers(1, options.vocabulary, count, np.int32)
        again = word if options.task == "copy" else word[::-1]
        tokens = np.zeros(length + 1, np.int32)
        tokens[:count], tokens[count + 1 : 2 * count + 1] = word, again
        mask[:] = 0
        mask[count : 2 * count] = 1
    return {
        "inputs": tokens[:-1],
        "targets": tokens[1:],
        "segments": np.ones(length, np.int32),
        "positions": np.arange(length, dtype=np.int32),
        "mask": mask,
    }
