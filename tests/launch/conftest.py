"""A trained model that tests of several commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch import train
from launch.run import errors
from tests.launch import runs


@pytest.fixture(scope="session")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work directory of the tiny decoder, two steps old."""
    workdir = tmp_path_factory.mktemp("runs") / "gpt"
    steps = {"train__steps": 2, "train__eval_every": 2, "optimizer__warmup_steps": 0}
    assert train.main(runs.arguments(workdir, **steps)) == errors.DONE
    return workdir
