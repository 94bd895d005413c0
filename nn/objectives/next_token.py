"""Predict the next token: cross-entropy of a language model."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nn.objectives import token_loss
from nn.objectives.sums import Batch, Sums, Variables, apply
from nn.objectives.token_loss import token_sums, with_aux
from nn.parallel import pipeline, psum
from nn.parallel.mesh import current_rules

SEQUENCE = ("inputs", "targets", "segments", "positions", "mask")
ONE_F_ONE_B = True  # `sums` goes by that schedule where the rules say so


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
        return _one_f_one_b(config, model, variables, inputs, batch, key), variables
    (hidden_BTD, _, aux), variables = apply(
        model, variables, *inputs, key=key, train=train, method="hidden"
    )
    found = token_sums(config, model, variables, hidden_BTD, batch["targets"], batch["mask"])
    return with_aux(found, aux, found["loss"][1]), variables


def _one_f_one_b(
    config: Config,
    model: nn.Module,
    variables: Variables,
    inputs: list[jax.Array | None],
    batch: Batch,
    key: jax.Array,
) -> Sums:
    """The same sums where the pipeline begins a microbatch's backward pass with its loss."""
    params = variables["params"]
    bound = model.bind({"params": params}, rngs={"dropout": key})
    carry, weights, stage = bound.stages(*inputs)
    targets_BT, mask_BT = batch["targets"], batch["mask"]
    parts = current_rules().microbatches

    def last(rest: Any, carry: Any, part: Any) -> tuple[jax.Array, Sums]:
        own = {"params": rest}
        hidden_BTD: Any = model.apply(own, carry[0], method="states")
        rows = pipeline.rows((targets_BT, mask_BT), part, parts, targets_BT.shape[0])
        found = token_sums(config, model, own, hidden_BTD, *rows)
        return found["loss"][0], found

    # A microbatch counts as its share of the tokens of the batch would, were all the same.
    (mask_shared,) = model.head_positions(mask_BT)
    tokens = psum(jnp.sum(mask_shared), pipeline.PIPE)
    rest = {name: params[name] for name in model.head_weights}
    loss, found, aux = pipeline.one_f_one_b(
        stage, last, weights, rest, carry, parts, tokens / parts
    )
    count = found["loss"][1]
    metrics = {name: value for name, value in aux.items() if name != "loss"}
    return with_aux({**found, "loss": (loss, count)}, metrics, count)


def derived(means: dict[str, float]) -> dict[str, float]:
    """Metrics that follow from the means: bits per token."""
    return {"bits_per_token": means["loss"] / 0.6931471805599453}
