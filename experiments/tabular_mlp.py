"""A multilayer perceptron on a small table: iris, wine, breast_cancer or diabetes.

    python -m launch.train --config=experiments/tabular_mlp.py:wine --workdir=runs/wine
    python -m launch.sweep --config=experiments/tabular_mlp.py:wine --workdir=runs/wine_sweep

Hardware: any; seconds on a CPU. The three classifications report accuracy, diabetes the squared
error of the standardised target (1: no better than its mean).
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from experiments import base

ARGUMENTS = {"iris": (4, 3), "wine": (13, 3), "breast_cancer": (30, 2), "diabetes": (10, 1)}


def get_config(table: str = "breast_cancer") -> ConfigDict:
    config = base.get_config()
    config.model.family = "mlp"
    config.model.in_features, config.model.out_features = ARGUMENTS[table]
    config.model.features = (32, 32)
    config.model.dropout = 0.1

    config.objective.name = "regress" if table == "diabetes" else "classify"
    config.data.name = table
    config.data.batch_size = 32

    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 10
    config.train.steps = 300
    config.train.eval_every = 50
    config.train.checkpoint_every = 150
    return config


def sweep() -> Iterator[dict[str, Any]]:
    """Width and rate, each pair of them."""
    for features in ((16,), (32, 32), (64, 64)):
        for rate in (1e-3, 3e-3, 1e-2):
            yield {"model.features": features, "optimizer.learning_rate": rate}
