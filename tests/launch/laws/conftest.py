"""A study that takes no time: runs are not trained, their losses follow a known law."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from launch.laws.planner import Planner
from launch.laws.study import Study
from launch.sweeping.cells import Cell
from launch.sweeping.store import Store

EXPERIMENT = """
from ml_collections import ConfigDict
from experiments import base


def get_config():
    config = base.get_config()
    config.model.family = "neural_lm"
    config.model.vocab_size = 64
    config.model.window = 4
    config.model.embed_dim = 8
    config.model.hidden_dim = 16
    config.data.name = "synthetic"
    config.data.vocabulary = 64
    config.data.batch_size = 4
    config.data.sequence_length = 8
    return config


def get_study():
    return ConfigDict({
        "width_key": "model.hidden_dim",
        "widths": (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768),
        "budgets": (1e9, 3e9, 1e10, 3e10),
        "held_out": (3e11,),
        "center": 8.0,
    })
"""
E, A, ALPHA, B, BETA = 0.9, 40.0, 0.40, 120.0, 0.40


def law(N: float, D: float) -> float:
    return E + A / N**ALPHA + B / D**BETA


@pytest.fixture(scope="session")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("study") / "tiny_study.py"
    path.write_text(EXPERIMENT)
    return str(path)


@pytest.fixture(scope="session")
def planner(spec: str) -> Planner:
    from launch.laws import study

    return Planner(study.load(spec), spec)


@pytest.fixture(scope="session")
def replanned(planner: Planner) -> Callable[..., Planner]:
    """The planner of a study with other keys, on the models that are measured already."""
    import copy
    import dataclasses

    def made(**changes: Any) -> Planner:
        other = copy.copy(planner)
        other.study = dataclasses.replace(planner.study, **changes)
        return other

    return made


def trained(store: Store, cells: Sequence[Cell], planner: Planner) -> int:
    """What a queue would do: records of runs that followed the law, a little noise by the seed."""
    sizes = {model.width: model.size for model in planner.models}
    for cell in cells:
        record = store.read(cell)
        if record["final"]:
            continue
        config = cell.config
        store.run(cell.id).mkdir(parents=True, exist_ok=True)
        size = sizes[config.model.hidden_dim]
        units = config.train.steps * config.data.batch_size * config.data.sequence_length
        noise = 1 + 1e-4 * math.sin(config.seed + 37 * config.model.hidden_dim)
        store.write(
            record
            | {
                "status": "done",
                "final": True,
                "steps": config.train.steps,
                "tokens": units,
                "examples": units // config.data.sequence_length,
                "warmup_steps": config.optimizer.warmup_steps,
                "flops_exact": units * size.flops_per_unit,
                "N_total": size.N_total,
                "N_nonemb": size.N_nonemb,
                "N_matmul": size.N_matmul,
                "val": {"loss": law(size.N_matmul, units) * noise},
            }
        )
    return 0


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "laws")


def study_of(**changes: Any) -> Study:
    return Study(**{"widths": (8, 16), "budgets": (1e9,), **changes})
