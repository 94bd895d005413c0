"""A multilayer perceptron on 8 x 8 images of handwritten digits.

    python -m launch.train --config=experiments/digits_mlp.py --workdir=runs/digits_mlp
    python -m launch.sweep --config=experiments/digits_mlp.py --workdir=runs/digits_sweep --slots=2

Hardware: any; less than a minute on a CPU. Expected: a test accuracy of at least 97.5 %; measured
98.0 to 98.3 % over three seeds.
"""

from ml_collections import ConfigDict

from experiments import base, sweeps


def get_config() -> ConfigDict:
    config = base.get_config()
    config.model.family = "mlp"
    config.model.in_features = 64
    config.model.features = (128, 128)
    config.model.out_features = 10

    config.objective.name = "classify"
    config.data.name = "digits"
    config.data.flatten = True
    config.data.scaling = "standard"
    config.data.batch_size = 64

    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 20
    config.train.steps = 600
    config.train.eval_every = 100
    config.train.checkpoint_every = 300
    return config


def sweep() -> list[sweeps.Cell]:
    """Width and rate, each pair of them."""
    widths = [(width, width) for width in (16, 32, 64, 128)]
    rates = [1e-3, 3e-3, 1e-2, 3e-2, 1e-1]
    return sweeps.grid({"model.features": widths, "optimizer.learning_rate": rates})
