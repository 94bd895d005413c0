"""An encoder-decoder transformer (Vaswani et al. 2017) that writes ten symbols backwards.

    python -m launch.train --config=experiments/seq2seq_reverse.py --workdir=runs/seq2seq_reverse

Hardware: any; a minute on a CPU. The data are made on the spot.
Expected: a test exact_match, the share of words that come out right to the last symbol, above 0.99;
measured 1.0 (1024 words, one seed), and 0.994 in validation 200 steps before the end.
"""

from ml_collections import ConfigDict

from experiments import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.model.family = "seq2seq_transformer"
    config.model.vocab_size = 32  # 30 symbols, a start and an end
    config.model.context_length = 11
    config.model.dim = 64
    config.model.encoder_layers = 2
    config.model.decoder_layers = 2
    config.model.num_heads = 4
    config.model.init_std = 0.1
    config.model.embed_std = 0.125  # 1 / sqrt(dim), so that tokens are as long as positions

    config.objective.name = "sequence_to_sequence"
    config.data.name = "reversal"
    config.data.batch_size = 64
    config.data.sequence_length = 11  # ten symbols and the end
    config.data.eval_batches = 16

    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 50
    config.train.steps = 800
    config.train.eval_every = 200
    config.train.checkpoint_every = 400
    return config
