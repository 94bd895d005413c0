"""The source text of the Python standard library, as bytes.

Size: about 9 MB in 460 files (CPython 3.11), without its tests. Splits by a hash of the path, so
that a file is in the same one everywhere: train (85 % of the bytes), validation (8 %), test (7 %).
Vocabulary: the 256 bytes. Source: the running interpreter, so the bytes differ between versions of
Python. Licence: PSF-2.0.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import platform
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from launch.data import baseline, prepare
from launch.data.packing import PackedSource, Stream, join
from launch.data.source import SPLITS, check_choice, data_directory

VOCABULARY = 256
BYTES_PER_TOKEN = 1.0
VERSION = "1.0.0"

# Not program text of the library itself: installed packages, tables and texts that were generated,
# what later versions dropped, and what many distributions leave out.
_SKIPPED = {
    "site-packages",
    "dist-packages",
    "__pycache__",
    "__phello__",
    "distutils",
    "encodings",
    "ensurepip",
    "lib-dynload",
    "lib2to3",
    "pydoc_data",
    "turtledemo",
}
_TESTS = {"test", "tests", "idle_test"}


@dataclasses.dataclass(frozen=True)
class Config:
    """Which files to take."""

    tests: bool = False  # also the tests of the standard library, 18 MB more


def open_source(
    options: Config,
    *,
    split: str,
    sequence_length: int,
    directory: str | os.PathLike[str] | None = None,
) -> PackedSource:
    """One split as rows of `sequence_length` bytes."""
    return PackedSource(
        stream(options, split, directory),
        sequence_length,
        name="python_source",
        version=f"{VERSION}+python{platform.python_version()}",
        vocabulary=VOCABULARY,
        split=split,
        options=options,
    )


def stream(options: Config, split: str, directory: str | os.PathLike[str] | None = None) -> Stream:
    """The bytes of one split, files in the order of their paths; prepares them when needed."""
    check_choice("split of data set python_source", split, SPLITS)
    records = prepare.open_records(_prepared(options, data_directory(directory)), split)
    documents = (np.frombuffer(record["text"], np.uint8) for record in records)
    return join(documents, VOCABULARY)


def bigram_bits_per_byte(
    split: str,
    options: Config | None = None,
    directory: str | os.PathLike[str] | None = None,
    targets: int | None = None,
) -> float:
    """Bits per byte of a bigram model of the train split, on exactly the targets of `split`.

    targets: the first this many places of the split only; None: all.
    """
    options = options or Config()
    train, evaluated = (stream(options, name, directory) for name in ("train", split))
    if targets is not None:
        evaluated = evaluated.first(targets + 1)
    return baseline.bigram_bits(train, evaluated, VOCABULARY)


def baselines(
    options: Config, split: str, directory: str | None, targets: int | None
) -> dict[str, float]:
    """What the loop prints beside a model's own `bits_per_byte`, on the same bytes."""
    return {"bigram_bits_per_byte": bigram_bits_per_byte(split, options, directory, targets)}


def library_files(root: Path, tests: bool) -> Iterator[tuple[str, bytes]]:
    """(path relative to `root` with slashes, content) of the library's files, sorted by path.

    A file that cannot be read is left out.
    """
    skipped = _SKIPPED if tests else _SKIPPED | _TESTS
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if f not in skipped and not f.startswith("config-")]
        for file in files:
            if file.endswith(".py") and not file.startswith("_sysconfigdata"):
                path = Path(folder, file)
                found.append((path.relative_to(root).as_posix(), path))
    for name, path in sorted(found):
        try:
            yield name, path.read_bytes()
        except OSError:
            continue


def split_of(name: str) -> str:
    """The split of the file with this relative path."""
    percentile = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 100
    return "train" if percentile < 90 else "validation" if percentile < 95 else "test"


def _prepared(options: Config, root: Path) -> Path:
    tests = "_tests" if options.tests else ""
    return prepare.build(
        root,
        "python_source",
        VERSION,
        config=f"{platform.python_implementation().lower()}_{platform.python_version()}{tests}",
        features=_features,
        splits=lambda: _splits(options),
        description="Source text of the Python standard library.",
        homepage="https://www.python.org",
        licence="PSF-2.0",
    )


def _features() -> Mapping[str, Any]:
    import tensorflow_datasets as tfds

    return {"path": tfds.features.Text(), "text": tfds.features.Text()}


def _splits(options: Config) -> Mapping[str, list[Mapping[str, Any]]]:
    splits: dict[str, list[Mapping[str, Any]]] = {split: [] for split in SPLITS}
    for name, text in library_files(Path(sysconfig.get_path("stdlib")), options.tests):
        splits[split_of(name)].append({"path": name, "text": text})
    return splits
