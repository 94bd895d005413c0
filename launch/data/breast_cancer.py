"""Breast tumours (Wisconsin, diagnostic): 30 measures of nuclei, malignant (0) or benign (1).

Task: classify. Size: 569 examples: train 398, validation 57, test 114; a fixed split,
stratified by class.
Source: bundled with scikit-learn, from
https://archive.ics.uci.edu/dataset/17/breast+cancer+wisconsin+diagnostic.
Licence: CC-BY-4.0.
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

    features, targets = datasets.load_breast_cancer(return_X_y=True)
    return features, targets


TABLE = Table(
    name="breast_cancer",
    load=_load,
    columns=30,
    classes=2,
    sizes=(398, 57, 114),
    description="Breast tumours (Wisconsin): 30 measures of nuclei, malignant (0) or benign (1).",
    homepage="https://archive.ics.uci.edu/dataset/17/breast+cancer+wisconsin+diagnostic",
    licence="CC-BY-4.0",
)


def open_source(
    options: Config,
    *,
    split: str,
    sequence_length: int = 0,
    directory: str | os.PathLike[str] | None = None,
) -> ArraySource:
    """One split: `inputs` (30,), and `labels` from 0 to 1."""
    del sequence_length  # there are no sequences
    return open_table(
        TABLE, options, split=split, standardize=options.standardize, directory=directory
    )
