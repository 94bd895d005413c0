"""The encoder-decoder transformer: the original of 2017, Marian, BART, T5.

config.py: every choice; model.py: from tokens to logits; presets.py: the published sizes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nn.families.seq2seq_transformer.config import Config as Config
from nn.families.seq2seq_transformer.model import Model as Model
from nn.families.seq2seq_transformer.presets import PRESETS as PRESETS

OBJECTIVES = ("sequence_to_sequence",)  # those that train it


def tiny() -> Config:
    """A model that a CPU trains in a second; every size differs, so that no mix-up passes."""
    return Config(
        vocab_size=96,
        context_length=40,
        dim=32,
        encoder_layers=3,
        decoder_layers=2,
        num_heads=4,
        mlp_dim=64,
    )


def example(config: Config, batch: int) -> tuple[jax.Array, ...]:
    """Positional inputs of the model: tokens to read (batch, S), and to go on from (batch, T)."""
    longer, length = min(config.context_length, 32), min(config.context_length, 16)
    inputs_BS = jnp.arange(batch * longer, dtype=jnp.int32).reshape(batch, -1)
    targets_BT = 7 * jnp.arange(batch * length, dtype=jnp.int32).reshape(batch, -1)
    return inputs_BS % config.vocab_size, targets_BT % config.vocab_size
