"""Iris flowers: 4 measurements in centimetres, 3 species.

Task: classify. Size: 150 examples: train 105, validation 15, test 30; a fixed split,
stratified by class.
Source: bundled with scikit-learn, from
https://archive.ics.uci.edu/dataset/53/iris. Licence: CC-BY-4.0.
"""

from __future__ import annotations

import dataclasses
import os

import numpy as np

from launch.data.source import ArraySource
from launch.data.tables import Table, open_table


@dataclasses.dataclass(frozen=True)
class Config:
    """How the values are scaled."""

    standardize: bool = True  # features: mean 0, variance 1 on the train split


def _load() -> tuple[np.ndarray, np.ndarray]:
    from sklearn import datasets  # takes seconds, needed only to prepare

    features, targets = datasets.load_iris(return_X_y=True)
    return features, targets


TABLE = Table(
    name="iris",
    load=_load,
    columns=4,
    classes=3,
    sizes=(105, 15, 30),
    description="Iris flowers: 4 measurements in centimetres, 3 species.",
    homepage="https://archive.ics.uci.edu/dataset/53/iris",
    licence="CC-BY-4.0",
)


def open_source(
    options: Config,
    *,
    split: str,
    sequence_length: int = 0,
    directory: str | os.PathLike[str] | None = None,
) -> ArraySource:
    """One split: `inputs` (4,), and `labels` from 0 to 2."""
    del sequence_length  # there are no sequences
    return open_table(
        TABLE, options, split=split, standardize=options.standardize, directory=directory
    )
