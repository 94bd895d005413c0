"""A small ModernBERT on the bytes of the Python standard library: hidden bytes from both sides.

    python -m launch.train --config=experiments/bert_bytes.py --workdir=runs/bert_bytes

Hardware: any; about three minutes on two CPU cores. The data are made on the spot; token 256 hides
others.
Expected: 0.56 of the chosen bytes of the validation split right, 0.60 of the test split; a space
everywhere would be right in 0.27 and 0.29 of them.
"""

from ml_collections import ConfigDict

from experiments import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.model.family = "bert"
    config.model.vocab_size = 257
    config.model.context_length = 128
    config.model.token_types = 0
    config.model.dim = 128
    config.model.num_layers = 4
    config.model.num_heads = 4
    config.model.mlp_dim = 256
    config.model.activation = "geglu"
    config.model.norm_order = "pre"
    config.model.position = "rotary"
    config.model.bias = False

    config.objective.name = "masked_token"
    config.objective.mask_token = 256
    config.data.name = "python_source"
    config.data.batch_size = 32
    config.data.sequence_length = 128
    config.data.eval_batches = 32

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 50
    config.train.steps = 400
    config.train.log_every = 20
    config.train.eval_every = 200
    config.train.checkpoint_every = 200
    return config
