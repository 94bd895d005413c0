"""A Llama 3 8B with a context of 2^20 positions, by ring attention: 128k or 1m.

    python -m launch.train --config=experiments/long_context.py:1m \\
                           --workdir=DIR --config.data.dir=DIR

Data: as in experiments/llama3.py, `tokens/llama3` under data.dir; documents are packed into rows
of the context's length, and no token sees another document.
Hardware: 128 chips of 95 GB, such as TPU v5p:4x4x8, with 32,768 positions to a chip. 1m: 32 chips
share the positions of a row out, and 4 the parameters and the optimizer's state (16 bytes each:
32 GB to a chip). 128k: 4 and 32.
Recipe: 4 million tokens to a batch and the base of the rotary frequencies are those of Liu et al.
2024, "World model on million-length video and language with blockwise RingAttention", table 1: 10
million for 128k, 50 million for 1m. There each length goes on from the weights of the one before;
here a run starts from none, and the rate, constant after its warmup, is our own choice.
Expected: nothing is published for a start from scratch; the loss should be that of
experiments/llama3.py:8b after as many tokens.
"""

from ml_collections import ConfigDict

from experiments import base

# context: (positions, base of the rotary frequencies, devices that share the positions out)
ARGUMENTS = {
    "128k": (2**17, 10_000_000.0, 4),
    "1m": (2**20, 50_000_000.0, 32),
}


def get_config(context: str = "1m") -> ConfigDict:
    config = base.get_config()
    config.model.family = "transformer"
    config.model.preset = "llama3-8b"
    config.model.context_length, config.model.rope_theta, shards = ARGUMENTS[context]
    config.model.remat = "block"

    base.tokens(config, "llama3", 128_256, config.model.context_length)
    config.objective.chunks = 32
    config.data.batch_size = 2**22 // config.data.sequence_length
    config.data.eval_batches = 8

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 4e-5
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_steps = 20
    config.mesh.attention = "ring"
    config.mesh.context = shards
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.train.steps = 500
    config.train.eval_every = 100
    config.train.checkpoint_every = 50
    return config
