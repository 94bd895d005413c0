"""Whisper: an encoder-decoder transformer that hears speech and writes it down.

config.py: every choice; model.py: from sound to logits; presets.py: the published sizes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nn.families.whisper.config import Config as Config
from nn.families.whisper.model import Model as Model
from nn.families.whisper.presets import PRESETS as PRESETS

OBJECTIVES = ("sequence_to_sequence",)  # those that train it


def tiny() -> Config:
    """A model that a CPU trains in a second; every size differs, so that no mix-up passes."""
    return Config(
        vocab_size=96,
        context_length=40,
        audio_context=32,
        num_mels=10,
        dim=32,
        encoder_layers=3,
        decoder_layers=2,
        num_heads=4,
        mlp_dim=64,
    )


def example(config: Config, batch: int) -> tuple[jax.Array, ...]:
    """Positional inputs of the model: frames (batch, F, M), and tokens to go on from (batch, T)."""
    frames, length = 2 * config.audio_context, min(config.context_length, 16)
    shape = (batch, frames, config.num_mels)
    inputs_BFM = jnp.sin(jnp.arange(batch * frames * config.num_mels, dtype=jnp.float32))
    targets_BT = 7 * jnp.arange(batch * length, dtype=jnp.int32).reshape(batch, -1)
    return inputs_BFM.reshape(shape), targets_BT % config.vocab_size
