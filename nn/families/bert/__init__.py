"""The bidirectional encoder: BERT, RoBERTa, DistilBERT, ELECTRA and ModernBERT.

config.py: every choice; model.py: from tokens to logits; presets.py: the published sizes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nn.families.bert.config import Config as Config
from nn.families.bert.model import Model as Model
from nn.families.bert.presets import PRESETS as PRESETS

OBJECTIVES = ("masked_token", "replaced_token", "classify")  # those that train it


def tiny() -> Config:
    """A model that a CPU trains in a second; every size differs, so that no mix-up passes."""
    return Config(vocab_size=96, context_length=24, dim=32, num_layers=8, num_heads=8, mlp_dim=64)


def example(config: Config, batch: int) -> tuple[jax.Array, ...]:
    """Positional inputs of the model: tokens (batch, T)."""
    length = min(config.context_length, 16)
    return (jnp.arange(batch * length, dtype=jnp.int32).reshape(batch, -1) % config.vocab_size,)
