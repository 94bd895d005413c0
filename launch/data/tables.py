"""What the small tabular data sets share: fixed splits, preparation, standardisation."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from launch.data import prepare, randomness
from launch.data.source import SPLITS, ArraySource, Spec, check_choice, data_directory

VERSION = "1.0.0"


@dataclasses.dataclass(frozen=True)
class Table:
    """A table that ships with scikit-learn, and how it is split."""

    name: str
    load: Callable[[], tuple[np.ndarray, np.ndarray]]  # features (N, F), targets (N,)
    columns: int  # F
    classes: int  # 0: the target is a real number
    sizes: tuple[int, int, int]  # examples in train, validation and test
    description: str
    homepage: str
    licence: str


def open_table(
    table: Table,
    options: Any,
    *,
    split: str,
    standardize: bool,
    directory: str | os.PathLike[str] | None = None,
) -> ArraySource:
    """One split of `table` as float32 features and int32 labels, or (1,) float32 targets.

    With `standardize`, each feature, and the target of a regression, has mean 0 and variance 1 on
    the train split.
    """
    check_choice(f"split of data set {table.name}", split, SPLITS)
    path = prepare.build(
        data_directory(directory),
        table.name,
        VERSION,
        features=lambda: _features(table),
        splits=lambda: _splits(table),
        description=table.description,
        homepage=table.homepage,
        licence=table.licence,
    )
    train, chosen = (_columns(path, name) for name in ("train", split))
    if standardize:
        scaled = ["features"] if table.classes else ["features", "target"]
        chosen |= {key: standardized(chosen[key], train[key]) for key in scaled}
    if table.classes:
        arrays = {"inputs": chosen["features"], "labels": chosen["target"].astype(np.int32)}
    else:
        arrays = {"inputs": chosen["features"], "targets": chosen["target"][:, None]}
    task = "classify" if table.classes else "regress"
    spec = Spec(task, (table.columns,), table.classes or 1, table.name, VERSION)
    return ArraySource(spec, split, options, arrays)


def standardized(values: np.ndarray, train: np.ndarray) -> np.ndarray:
    """`values` in units of the standard deviation of `train`, from its mean, along the rows."""
    spread = train.std(axis=0, dtype=np.float64)
    centred = values - train.mean(axis=0, dtype=np.float64)
    return (centred / np.where(spread > 0, spread, 1)).astype(np.float32)


def stratified(classes: np.ndarray, sizes: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """Which rows are in train, validation and test: always the same, each class in proportion.

    Args:
      classes: (N,) integers. sizes: how many rows of each split, N in all.
    """
    order = randomness.shuffled(0, np.arange(len(classes)), len(classes))
    place = np.empty(len(classes))  # of a row in its class, as a fraction
    for label in np.unique(classes):
        members = order[classes[order] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    dealt = np.lexsort((classes, place))
    train, validation, test = sizes
    assert train + validation + test == len(classes)
    bounds = (test, test + validation)
    parts = dict(zip(("test", "validation", "train"), np.split(dealt, bounds), strict=True))
    return {split: np.sort(parts[split]) for split in SPLITS}


def _features(table: Table) -> Mapping[str, Any]:
    import tensorflow_datasets as tfds

    target = tfds.features.ClassLabel(num_classes=table.classes) if table.classes else np.float32
    return {
        "features": tfds.features.Tensor(shape=(table.columns,), dtype=np.float32),
        "target": target,
    }


def _splits(table: Table) -> Mapping[str, list[Mapping[str, Any]]]:
    features, targets = table.load()
    classes = targets if table.classes else np.zeros(len(targets), np.int64)
    rows = stratified(classes, table.sizes)
    kind = int if table.classes else float
    return {
        split: [
            {"features": features[i].astype(np.float32), "target": kind(targets[i])} for i in chosen
        ]
        for split, chosen in rows.items()
    }


def _columns(path: Any, split: str) -> dict[str, np.ndarray]:
    records = list(prepare.open_records(path, split))
    return {
        "features": np.stack([record["features"] for record in records]),
        "target": np.array([record["target"] for record in records], np.float32),
    }
