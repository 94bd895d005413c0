"""Predict the next token: cross-entropy of a language model.

The head is applied to one chunk of positions at a time and computed again in the backward pass, so
that the full logits (B, T, V) never exist when `chunks` > 1; a vocabulary split over the mesh is
never gathered. `head_sums`, `with_aux` and `one_f_one_b` serve whatever objective predicts tokens.

Legend: B batch, T positions, D width, N chunks, C positions per chunk.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nn import losses, names
from nn.objectives.sums import Batch, Sums, Variables, apply
from nn.parallel import pipeline, psum, split_axis
from nn.parallel.mesh import current_rules

SEQUENCE = ("inputs", "targets", "segments", "positions", "mask")
ONE_F_ONE_B = True  # `sums` goes by that schedule where the rules say so


@dataclasses.dataclass(frozen=True)
class Config:
    label_smoothing: float = 0.0  # probability spread over the vocabulary
    z_loss: float = 0.0  # weight of the squared log-partition (Chowdhery et al. 2022)
    chunks: int = 1  # pieces in which the logits are computed

    def __post_init__(self) -> None:
        if self.chunks < 1:
            raise ValueError(f"objective.chunks={self.chunks}: must be at least 1")


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
    found = head_sums(config, model, variables, hidden_BTD, batch["targets"], batch["mask"])
    return with_aux(found, aux, found["loss"][1]), variables


def head_sums(
    config: Config,
    model: nn.Module,
    variables: Variables,
    hidden_BTD: jax.Array,
    targets_BT: jax.Array,
    mask_BT: jax.Array,
) -> Sums:
    """Sums of the head's loss over the positions of `hidden_BTD`; all positions of the others."""
    split = split_axis("vocab", model.config.vocab_size)
    weight: Any = None
    if config.chunks > 1:  # gathered before the loop, not in each of its iterations
        weight = model.apply(variables, hidden_BTD, method="head_weight")

    def chunk(hidden_BCD: jax.Array, targets_BC: jax.Array, mask_BC: jax.Array) -> Any:
        logits: Any = model.apply(variables, hidden_BCD, weight, method="head")
        loss_BC = losses.softmax_cross_entropy(
            logits,
            targets_BC,
            label_smoothing=config.label_smoothing,
            z_loss=config.z_loss,
            axis_name=split,
        )
        hit_BC = losses.correct(logits, targets_BC, axis_name=split)
        return jnp.sum(loss_BC * mask_BC), jnp.sum(hit_BC * mask_BC)

    targets_BT, mask_BT = model.head_positions(targets_BT, mask_BT)
    loss, hits = _over_chunks(chunk, config.chunks, hidden_BTD, targets_BT, mask_BT)
    count = jnp.sum(mask_BT)
    return {"loss": (loss, count), "accuracy": (hits, count)}


def with_aux(found: Sums, aux: dict[str, jax.Array], count: jax.Array) -> Sums:
    """The sums, with what the blocks add to the loss of every token, and their metrics."""
    extra = {name: (value * count, count) for name, value in aux.items()}
    if "loss" in extra:
        found["loss"] = (found["loss"][0] + extra.pop("loss")[0], count)
    return {**found, **extra}


def one_f_one_b(
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
        found = head_sums(config, model, own, hidden_BTD, *rows)
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


def _over_chunks(chunk: Any, chunks: int, *arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum `chunk` over pieces of dimension 1; each piece is computed again in the backward pass."""
    if chunks == 1:
        return chunk(*arrays)
    length = arrays[0].shape[1]
    if length % chunks:
        raise ValueError(
            f"objective.chunks={chunks} does not divide {length} positions; "
            f"nearest: {names.nearest_divisor(length, chunks)}"
        )

    def pieces(x: jax.Array) -> jax.Array:
        return x.reshape(x.shape[0], chunks, -1, *x.shape[2:]).swapaxes(0, 1)

    step = jax.checkpoint(chunk)
    totals = jax.lax.map(lambda piece: step(*piece), tuple(pieces(a) for a in arrays))
    return totals[0].sum(), totals[1].sum()


def derived(means: dict[str, float]) -> dict[str, float]:
    """Metrics that follow from the means: bits per token."""
    return {"bits_per_token": means["loss"] / 0.6931471805599453}
