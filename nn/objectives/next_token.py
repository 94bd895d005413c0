"""Predict the next token: cross-entropy of a language model."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax

from nn.objectives import token_loss
from nn.objectives.sums import Batch, Sums, Variables, apply
from nn.objectives.token_loss import one_f_one_b, token_sums, with_aux
from nn.parallel import pipeline

SEQUENCE = ("inputs", "targets", "segments", "positions", "mask")
ONE_F_ONE_B = True  # `sums` goes by that schedule where the rules say so
CODES = True  # each token is predicted from those before it, so the loss is a length of the text


@dataclasses.dataclass(frozen=True)
class Config(token_loss.Options):
    """See `token_loss.Options`."""


def sums(
    config: Config,
    model: nn.Module,
    variables: Variables,
    batch: Batch,
    key: jax.Array,
    train: bool,
) -> tuple[Sums, Variables]:
    """Sums over this shard's tokens of "loss" (nats) and "accuracy".

    batch: inputs, targets, segments, positions (B, T) int32, mask (B, T) float32.
    Raises ValueError when chunks does not divide the positions.
    """
    model = model.clone(train=train)
    wanted = ("inputs", "positions", "segments")
    inputs = [batch[name] if name in batch else None for name in wanted]
    if train and pipeline.alternates():
        return one_f_one_b(config, model, variables, inputs, batch, key), variables
    (hidden_BTD, _, aux), variables = apply(
        model, variables, *inputs, key=key, train=train, method="hidden"
    )
    found = token_sums(config, model, variables, hidden_BTD, batch["targets"], batch["mask"])
    return with_aux(found, aux, found["loss"][1]), variables


derived = token_loss.derived
