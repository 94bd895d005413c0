"""Mixtral (Jiang et al. 2024) from scratch: 8x7b, or tiny, a model of the same shape on bytes.

    python -m launch.train --config=experiments/mixtral.py:tiny --workdir=runs/mixtral_tiny
    python -m launch.train --config=experiments/mixtral.py:8x7b --workdir=DIR --config.data.dir=DIR

Data: tiny makes its own. For 8x7b a TFDS data set of your own, `tokens/mixtral` under data.dir:
each record has the feature `tokens`, a document as ids of Mixtral's tokenizer; splits train and
validation.
Hardware: any for tiny, a minute on two CPU cores; measured: 3.23 bits per byte on the validation
split, where a bigram model has 3.76. For 8x7b parameters, gradients and optimizer state take 16
bytes per parameter, 750 GB in all, almost all of it experts, shared out over mesh.fsdp x
mesh.expert x mesh.tensor; meant for v5p:8x8x8, one example and one expert per layer on each chip.
Recipe: the paper gives none; rates are Llama 3's, the balance coefficient is the published one.
"""

from ml_collections import ConfigDict

from experiments import base

ARGUMENTS = ("8x7b", "tiny")


def get_config(size: str = "8x7b") -> ConfigDict:
    config = base.get_config()
    config.model.family = "transformer"
    config.model.preset = "mixtral-8x7b"
    (_tiny if size == "tiny" else _published)(config)
    return config


def _published(config: ConfigDict) -> None:
    config.model.remat = "block"
    base.tokens(config, "mixtral", 32_000, 8192)
    config.objective.chunks = 16
    config.data.batch_size = 512
    config.data.eval_batches = 8
    config.optimizer.learning_rate = 3e-4
    config.optimizer.warmup_steps = 2000
    # Shares of a width of 4096 among more than 32 devices are narrower than a tile of a TPU.
    config.mesh.fsdp = 16
    config.mesh.expert = 8
    config.train.steps = 500_000
    config.train.eval_every = 2000
    config.train.checkpoint_every = 1000


def _tiny(config: ConfigDict) -> None:
    config.model.vocab_size = 256
    config.model.context_length = 128
    config.model.dim = 64
    config.model.num_layers = 2
    config.model.num_heads = 4
    config.model.num_kv_heads = 2
    config.model.mlp_dim = 128
    config.model.router_balance_loss = 0.01
    config.data.name = "python_source"
    config.data.batch_size = 16
    config.data.sequence_length = 128
    config.data.eval_batches = 16
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 20
    config.train.steps = 300
    config.train.eval_every = 100
    config.train.checkpoint_every = 150
