"""What a data set offers the loop: examples by number, their shapes, and a fingerprint.

A data set is one file of this folder. It exports `Config` (a frozen dataclass, its options) and
`open_source(options, *, split, sequence_length, directory) -> Source`. Nothing here imports jax.
"""

from __future__ import annotations

import abc
import dataclasses
import difflib
import importlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Example = dict[str, np.ndarray]

TASKS = ("classify", "contrast", "next_token", "regress", "sequence_to_sequence")
SPLITS = ("train", "validation", "test")


class RecordError(RuntimeError):
    """A record that cannot be read or does not look like the others; the message names it."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a model and an objective must know of a data set before they see any of it."""

    task: str  # one of TASKS
    input_shape: tuple[int, ...]  # of one example, without the batch
    num_outputs: int  # classes, regression targets, or vocabulary
    name: str
    version: str


class Source(abc.ABC):
    """Random access to the examples of one split.

    Examples are dictionaries of arrays without a batch dimension: `inputs` and `labels`
    (classify), `inputs` and `targets` (regress), `inputs, tokens, labels, choices` (contrast),
    `inputs, targets, segments, positions, mask` (next_token), those with `input_segments` and
    `decoder_inputs` (sequence_to_sequence). Reading must be safe from several threads at once.
    """

    augments = False  # whether `augmented` draws anything
    mixup = 0.0  # the alpha of mixup that the options ask for; 0 is off

    def __init__(self, spec: Spec, split: str, options: Any, **identity: Any) -> None:
        """`identity`: further entries of the fingerprint, such as the packing of token data."""
        self.spec = spec
        self.split = split
        self.options = options
        self._identity = identity

    @abc.abstractmethod
    def __len__(self) -> int:
        """The number of examples."""

    @abc.abstractmethod
    def __getitem__(self, index: int) -> Example:
        """Example `index`, as it is evaluated: the same at every call."""

    def augmented(self, index: int, generator: np.random.Generator) -> Example:
        """Example `index`, as it is trained on; the default is the example itself."""
        del generator
        return self[index]

    def read(self, indices: Sequence[int]) -> Example:
        """Examples `indices`, stacked."""
        return stack([self[int(index)] for index in indices])

    def fingerprint(self) -> dict[str, Any]:
        """What must not change under a run that is resumed, as plain JSON values."""
        return {
            "name": self.spec.name,
            "version": self.spec.version,
            "split": self.split,
            "length": len(self),
            "options": dataclasses.asdict(self.options),
            **self._identity,
        }


class ArraySource(Source):
    """A split held in memory: `arrays` have the examples along their first dimension."""

    def __init__(
        self, spec: Spec, split: str, options: Any, arrays: Example, **identity: Any
    ) -> None:
        super().__init__(spec, split, options, **identity)
        self.arrays = arrays
        self._length = len(next(iter(arrays.values())))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self._length:
            raise IndexError(f"example {index} of {self._length}")
        return {key: array[index] for key, array in self.arrays.items()}

    def read(self, indices: Sequence[int]) -> Example:
        return {key: array[np.asarray(indices)] for key, array in self.arrays.items()}


def stack(examples: Sequence[Example]) -> Example:
    """A batch of `examples`; ValueError where they differ in keys or shapes."""
    keys = examples[0].keys()
    if any(example.keys() != keys for example in examples):
        raise ValueError("the examples of a batch have different keys")
    return {key: np.stack([example[key] for example in examples]) for key in keys}


def unknown(kind: str, name: str, options: Iterable[str]) -> ValueError:
    """The error for a `name` that is not among `options`; names the list and the nearest."""
    options = sorted(options)
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    hint = f"; nearest: {near[0]!r}" if near else ""
    return ValueError(f"unknown {kind} {name!r}: choose from {', '.join(options) or '-'}{hint}")


def check_choice(kind: str, name: str, options: Iterable[str]) -> None:
    """ValueError (see `unknown`) when `name` is not among `options`."""
    options = tuple(options)
    if name not in options:
        raise unknown(kind, name, options)


def check_range(
    key: str, value: float, low: float, high: float = float("inf"), unit: str = ""
) -> None:
    """ValueError when option `key` is outside low..high (both allowed) or is not a number."""
    if not low <= value <= high:
        rule = f"at least {low:g}" if high == float("inf") else f"between {low:g} and {high:g}"
        nearest = high if value > high else low
        raise ValueError(
            f"data.{key} is {value}: it must be {rule}{unit and ' ' + unit}; nearest: {nearest:g}"
        )


def check_sequence_length(sequence_length: int) -> None:
    """ValueError unless rows have at least one token."""
    check_range("sequence_length", sequence_length, 1, unit="tokens")


def data_directory(directory: str | os.PathLike[str] | None = None) -> Path:
    """Where prepared data lies: `directory`, else $TESSERA_DATA_DIR, else ~/.cache/tessera/data."""
    chosen = directory or os.environ.get("TESSERA_DATA_DIR") or "~/.cache/tessera/data"
    return Path(chosen).expanduser().absolute()


def available() -> list[str]:
    """The names of the data sets: the files of this folder that export `open_source`."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return [file.stem for file in files if "\ndef open_source(" in file.read_text("utf-8")]


def open_split(
    name: str,
    options: Any = None,
    split: str = "train",
    sequence_length: int = 256,
    directory: str | os.PathLike[str] | None = None,
) -> Source:
    """Open one split of data set `name`.

    Args:
      options: the data set's own Config, or a mapping of its fields; None takes the defaults.
      sequence_length: tokens in a row; only token data sets read it.
      directory: the root of prepared data, see `data_directory`.

    Raises ValueError for an unknown name, option or split, naming the nearest valid one.
    """
    check_choice("data set", name, available())
    module = importlib.import_module(f"launch.data.{name}")
    if options is None or isinstance(options, Mapping):
        options = options or {}
        fields = [field.name for field in dataclasses.fields(module.Config)]
        for key in options:
            check_choice(f"option of data set {name}", key, fields)
        options = module.Config(**options)
    source: Source = module.open_source(
        options, split=split, sequence_length=sequence_length, directory=directory
    )
    return source
