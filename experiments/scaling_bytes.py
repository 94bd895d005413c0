"""A scaling law on two cores: models of bytes with one hidden layer (Bengio et al. 2003), IsoFLOP
slices from 1e10 to 3e11 FLOPs, a forecast for 1e12, and the runs that were held out to check it.

    python -m launch.scaling run --config=experiments/scaling_bytes.py --workdir=runs/laws --slots=2

One run of it:

    python -m launch.train --config=experiments/scaling_bytes.py --workdir=runs/scaling_bytes

Hardware: two cores. The data are made on the spot.
Expected: a forecast of 1.580 from what is at most 3e11 (1.581 from at most 1e11), 1.580 trained;
six and a half minutes on two busy cores.
"""

from ml_collections import ConfigDict

from experiments import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.model.family = "neural_lm"
    config.model.hidden_dim = 64
    config.model.activation = "gelu"
    config.model.embed_std = 0.3

    config.objective.name = "next_token"
    config.data.name = "python_source"
    config.data.batch_size = 2
    config.data.sequence_length = 64
    config.data.eval_batches = 8
    config.data.eval_batch_size = 256

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 0.01
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.0
    config.optimizer.final_fraction = 0.0
    config.metrics.tensorboard = False
    config.train.eval_every = 0
    config.train.checkpoint_every = 0
    return config


def get_study() -> ConfigDict:
    study = ConfigDict()
    study.width_key = "model.hidden_dim"
    study.widths = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
    study.budgets = (1e10, 3e10, 1e11, 3e11)
    study.held_out = (1e12,)
    study.points = 6
    study.center = 10.0
    return study
