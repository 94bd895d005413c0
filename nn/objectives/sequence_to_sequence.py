"""Write one sequence after reading another: cross-entropy of an encoder-decoder's targets.

Legend: B batch, S positions that are read, T positions that are written.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from nn.objectives import token_loss
from nn.objectives.sums import Batch, Sums, Variables, apply
from nn.objectives.token_loss import token_losses, with_aux
from nn.parallel import pipeline, psum

SEQUENCE = (
    "inputs",
    "input_segments",
    "decoder_inputs",
    "targets",
    "segments",
    "positions",
    "mask",
)


@dataclasses.dataclass(frozen=True)
class Config(token_loss.Options):
    """See `token_loss.Options`; Vaswani et al. 2017 smooth labels by 0.1."""


def sums(
    config: Config,
    model: nn.Module,
    variables: Variables,
    batch: Batch,
    key: jax.Array,
    train: bool,
) -> tuple[Sums, Variables]:
    """Sums over this shard's targets of "loss" (nats) and "accuracy"; "exact_match" over its rows.

    exact_match: all targets of a row are the likeliest tokens; then, and only then, are they what
      greedy decoding writes, for behind each of them lies what it would have written itself.
    batch: inputs (B, S) int32; targets (B, T) int32; decoder_inputs, the targets behind a token
      that starts them; mask (B, T) float32; where there is padding or more than one document,
      input_segments (B, S), segments and positions (B, T) int32, segment 0 for padding.
    Raises ValueError when chunks does not divide the positions.
    """
    model = model.clone(train=train)
    wanted = ("input_segments", "positions", "segments")
    input_segments, positions, segments = (batch[n] if n in batch else None for n in wanted)
    memory_BSD, variables = apply(
        model, variables, batch["inputs"], input_segments, key=key, train=train, method="encode"
    )
    given = (batch["decoder_inputs"], positions, segments, None, memory_BSD, input_segments)
    (hidden_BTD, _, aux), variables = apply(
        model, variables, *given, key=key, train=train, method="hidden"
    )
    targets_BT, mask_BT = model.head_positions(batch["targets"], batch["mask"])
    loss_BT, hit_BT = token_losses(config, model, variables, hidden_BTD, targets_BT)
    count = jnp.sum(mask_BT)
    found = {
        "loss": (jnp.sum(loss_BT * mask_BT), count),
        "accuracy": (jnp.sum(hit_BT * mask_BT), count),
        "exact_match": _exact_match(hit_BT, mask_BT, rows=len(batch["targets"])),
    }
    return with_aux(found, aux, count), variables


def _exact_match(hit_BT: jax.Array, mask_BT: jax.Array, rows: int) -> tuple[jax.Array, jax.Array]:
    """(rows without a miss, rows with a target) among all that have positions here.

    rows: of the batch. Stages of a pipeline share rows out, and only if those do not divide,
      positions, which other axes split in any case.
    """
    axes = ["context", "tensor"] + [pipeline.PIPE] * (len(mask_BT) == rows)
    misses_B, targets_B = (
        psum(jnp.sum(x_BT, axis=1), axes) for x_BT in ((1 - hit_BT) * mask_BT, mask_BT)
    )
    there_B = targets_B > 0
    return jnp.sum((misses_B == 0) & there_B, dtype=jnp.float32), jnp.sum(
        there_B, dtype=jnp.float32
    )
