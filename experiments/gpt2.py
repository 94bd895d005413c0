"""GPT-2 (Radford et al. 2019) from scratch: 124m, 355m, 774m or 1.5b.

    python -m launch.train --config=experiments/gpt2.py:124m --workdir=runs/gpt2_124m \
        --config.data.dir=DIR

Data: a TFDS data set of your own, `tokens/gpt2` under DIR: each record has the feature `tokens`,
a document as ids of GPT-2's tokenizer; splits train and validation. Another one by
`--config.data.dataset=NAME`.
Hardware: accelerators. Parameters, gradients and optimizer state take 16 bytes per parameter, split
over mesh.fsdp: 2 GB in all for 124m, 25 GB for 1.5b. Where the batch does not fit beside them,
`--config.rule.accumulate=N` goes through it in N parts.
Recipe: the paper gives none; this is the one of nanoGPT, half a million tokens per step.
"""

from ml_collections import ConfigDict

from experiments import base

# size: (preset, peak of the learning rate: Brown et al. 2020, table 2.1)
ARGUMENTS = {
    "124m": ("gpt2", 6e-4),
    "355m": ("gpt2-medium", 3e-4),
    "774m": ("gpt2-large", 2.5e-4),
    "1.5b": ("gpt2-xl", 2e-4),
}


def get_config(size: str = "124m") -> ConfigDict:
    config = base.get_config()
    config.model.family = "transformer"
    config.model.preset, config.optimizer.learning_rate = ARGUMENTS[size]
    config.model.remat = "block"

    base.tokens(config, "gpt2", 50257, 1024)
    config.objective.chunks = 8
    config.data.batch_size = 480
    config.data.eval_batches = 20

    config.optimizer.name = "adamw"
    config.optimizer.warmup_steps = 2000
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.train.steps = 600_000
    config.train.eval_every = 1000
    config.train.checkpoint_every = 1000
    return config
