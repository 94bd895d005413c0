"""Data sets are prepared once per session, in a directory of the session's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from launch.data.source import ArraySource, Example, Spec


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """The options of a data set that has none."""


class Numbers(ArraySource):
    """`length` examples; example i has inputs (i, -i) and label i % 7; some records are bad."""

    def __init__(self, length: int, bad: dict[int, Callable[[], Example]] | None = None) -> None:
        numbers = np.arange(length, dtype=np.float32)
        arrays = {
            "inputs": np.stack([numbers, -numbers], axis=1),
            "labels": np.arange(length, dtype=np.int32) % 7,
        }
        super().__init__(Spec("classify", (2,), 7, "numbers", "1"), "train", NoOptions(), arrays)
        self.bad = bad or {}

    def __getitem__(self, index: int) -> Example:
        return self.bad[index]() if index in self.bad else super().__getitem__(index)

    def read(self, indices: list[int]) -> Example:
        for index in indices:
            if index in self.bad:
                self.bad[index]()
        return super().read(indices)


@pytest.fixture
def numbers() -> type[Numbers]:
    """A source whose batches are easy to predict."""
    return Numbers


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the session's prepared data lie."""
    return tmp_path_factory.mktemp("data")
