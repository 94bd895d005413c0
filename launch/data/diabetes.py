"""Diabetes patients: 10 baseline variables and the progression of the disease a year later.

Task: regress. Size: 442 examples: train 308, validation 45, test 89; a fixed random split.
Source: bundled with scikit-learn, from
https://www4.stat.ncsu.edu/~boos/var.select/diabetes.html.
Licence: unstated; published with Efron et al., "Least angle regression" (2004).
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

    standardize: bool = True  # features and target: mean 0, variance 1 on the train split


def _load() -> tuple[np.ndarray, np.ndarray]:
    from sklearn import datasets  # takes seconds, needed only to prepare

    features, targets = datasets.load_diabetes(return_X_y=True, scaled=False)
    return features, targets


TABLE = Table(
    name="diabetes",
    load=_load,
    columns=10,
    classes=0,
    sizes=(308, 45, 89),
    description="Diabetes patients: 10 baseline variables and the progression of the disease.",
    homepage="https://www4.stat.ncsu.edu/~boos/var.select/diabetes.html",
    licence="unstated; published with Efron et al., 'Least angle regression' (2004)",
)


def open_source(
    options: Config,
    *,
    split: str,
    sequence_length: int = 0,
    directory: str | os.PathLike[str] | None = None,
) -> ArraySource:
    """One split: `inputs` (10,), and `targets` (1,)."""
    del sequence_length  # there are no sequences
    return open_table(
        TABLE, options, split=split, standardize=options.standardize, directory=directory
    )
