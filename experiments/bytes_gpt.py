"""A small GPT on the bytes of the Python standard library; `make train` runs it.

    python -m launch.train --config=experiments/bytes_gpt.py --workdir=runs/bytes_gpt

Hardware: any. The data are made on the spot.
Expected: validation bits per byte far below the bigram model of the same bytes, which the run
prints beside it.
"""

from ml_collections import ConfigDict

from experiments import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.model.family = "transformer"
    config.model.vocab_size = 256
    config.model.context_length = 256
    config.model.dim = 128
    config.model.num_layers = 4
    config.model.num_heads = 4
    config.model.activation = "swiglu"
    config.model.mlp_dim = 384
    config.model.norm = "rms"
    config.model.position = "rotary"
    config.model.bias = False

    config.objective.name = "next_token"
    config.data.name = "python_source"
    config.data.batch_size = 8
    config.data.sequence_length = 256
    config.data.eval_batches = 24

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 30
    config.train.steps = 360
    config.train.log_every = 10
    config.train.eval_every = 120
    config.train.checkpoint_every = 120

    config.sample.prompt = "def "
    config.sample.length = 200
    config.sample.temperature = 0.8
    return config
