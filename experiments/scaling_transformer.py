"""IsoFLOP slices of decoders from 1e16 to 1e19 FLOPs, on text of your own.

    python -m launch.scaling plan --config=experiments/scaling_transformer.py \
        --hardware=h100 --price=3
    python -m launch.scaling run  --config=experiments/scaling_transformer.py --workdir=runs/laws \
        --config.data.dir=DIR

One run of it:

    python -m launch.train --config=experiments/scaling_transformer.py --workdir=runs/decoder \
        --config.data.dir=DIR

Data: a TFDS data set of your own, `tokens/gpt2` under DIR, as for experiments/gpt2.py.
Hardware: one accelerator for each run, as many runs at a time as there are accelerators.
"""

from ml_collections import ConfigDict

from experiments import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.model.family = "transformer"
    config.model.vocab_size = 50257
    config.model.context_length = 1024
    config.model.dim = 512
    config.model.num_layers = 8
    config.model.num_heads = 8
    config.model.mlp_dim = 2048
    config.model.norm = "rms"
    config.model.position = "rotary"
    config.model.qk_norm = "head"
    config.model.bias = False
    config.model.tie_embeddings = False
    config.model.remat = "block"

    base.tokens(config, "gpt2", 50257, 1024)
    config.objective.chunks = 8
    config.data.batch_size = 64
    config.data.eval_batches = 64

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 4e-3
    config.optimizer.final_fraction = 0.0
    config.train.eval_every = 0
    config.train.checkpoint_every = 1000
    return config


def get_study() -> ConfigDict:
    study = ConfigDict()
    study.widths = tuple(range(128, 1537, 64))
    study.head_dim = 64
    study.aspect = 64.0
    study.multiples = ("model.mlp_dim=4",)
    study.budgets = (1e16, 1e17, 1e18, 1e19)
    study.points = 7
    study.center = 20.0
    study.rule = "completep"
    study.base_width = 256
    study.rates = (0.5, 2.0)
    return study
