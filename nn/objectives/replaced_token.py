"""Find the tokens that were replaced: the loss of ELECTRA's discriminator (Clark et al. 2020, 2.2).

The batch holds the tokens with some replaced, as a generator (a masked language model) left them,
beside the original ones; a token that the generator got right counts as original.

Legend: B batch, T positions.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nn import losses
from nn.objectives.sums import Batch, Sums, Variables, apply

SEQUENCE = ("inputs", "targets", "segments", "positions", "types", "mask")


@dataclasses.dataclass(frozen=True)
class Config:
    pass


def sums(
    config: Config,
    model: nn.Module,
    variables: Variables,
    batch: Batch,
    key: jax.Array,
    train: bool,
) -> tuple[Sums, Variables]:
    """Sums over this shard's tokens of "loss" (nats), "accuracy" and "replaced", their share.

    batch: inputs and targets (B, T) int32, with and without replacements; mask (B, T) float32; if
      there are any: segments, positions, types (B, T) int32.
    Raises ValueError for a model without such a head.
    """
    if model.config.head != "replaced_token":
        raise ValueError(
            f"model.head={model.config.head!r} finds no replaced tokens; nearest: 'replaced_token'"
        )
    model = model.clone(train=train)
    wanted = ("positions", "segments", "types")
    inputs = [batch["inputs"], *(batch[name] if name in batch else None for name in wanted)]
    (hidden_BTD, *_), variables = apply(
        model, variables, *inputs, key=key, train=train, method="hidden"
    )
    logits_BT: Any = model.apply(variables, hidden_BTD, method="head")
    replaced_BT = (batch["inputs"] != batch["targets"]).astype(jnp.float32)
    replaced_BT, mask_BT = model.head_positions(replaced_BT, batch["mask"])
    loss_BT = losses.binary_cross_entropy(logits_BT, replaced_BT)
    hit_BT = (logits_BT > 0) == (replaced_BT > 0)
    count = jnp.sum(mask_BT)

    def total(values_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.sum(values_BT * mask_BT), count

    found = {"loss": total(loss_BT), "accuracy": total(hit_BT), "replaced": total(replaced_BT)}
    return found, variables
