"""Llama 3 (Llama Team 2024) from scratch: 1b, 8b, 70b, 405b or 405b-pipeline.

    python -m launch.train --config=experiments/llama3.py:8b --workdir=DIR --config.data.dir=DIR

Data: a TFDS data set of your own, `tokens/llama3` under data.dir: each record has the feature
`tokens`, a document as ids of Llama 3's tokenizer; splits train and validation. Another one by
`--config.data.dataset=NAME`.
Hardware: parameters, gradients and optimizer state take 16 bytes per parameter, shared out over
mesh.fsdp x mesh.tensor: 20 GB in all for 1b, 130 GB for 8b, 1.1 TB for 70b, 6.5 TB for 405b.
Recipe: rates and steps of the paper, section 3.4.1. Its batch grows from 4 to 16 million tokens in
the course of the run; here it is 8 million throughout. For 1b, which was not made in this way, the
rate is our own choice.
405b-pipeline, for 4096 chips: of the powers of two only 2 divides 126 layers, hence two stages of
63, each in 7 pieces of 9, through which 4 microbatches of one row a device go round: the stages
wait for 1 / (4 x 7 + 1) = 3.4 % of the time, where 1f1b would wait for 20 %.
"""

from ml_collections import ConfigDict

from experiments import base

# size: (preset, peak of the learning rate: table 3, devices that share each matrix product)
ARGUMENTS = {
    "1b": ("llama3.2-1b", 5e-4, 1),
    "8b": ("llama3-8b", 3e-4, 1),
    "70b": ("llama3-70b", 1.5e-4, 4),
    "405b": ("llama3-405b", 8e-5, 8),
    "405b-pipeline": ("llama3-405b", 8e-5, 8),
}


def get_config(size: str = "8b") -> ConfigDict:
    config = base.get_config()
    config.model.family = "transformer"
    config.model.preset, config.optimizer.learning_rate, config.mesh.tensor = ARGUMENTS[size]
    config.model.remat = "block"

    base.tokens(config, "llama3", 128_256, 8192)
    config.objective.chunks = 16
    config.data.batch_size = 1024
    config.data.eval_batches = 8

    config.optimizer.name = "adamw"
    config.optimizer.warmup_steps = 8000
    config.optimizer.final_fraction = 0.01
    config.mesh.data = 1
    config.mesh.fsdp = -1
    if size == "405b-pipeline":
        config.mesh.data = -1
        config.mesh.fsdp = 128
        config.mesh.pipe = 2
        config.mesh.schedule = "interleaved"
        config.mesh.rounds = 7
        config.mesh.microbatches = 4
    config.train.steps = 1_200_000
    config.train.eval_every = 2000
    config.train.checkpoint_every = 1000
    return config
