"""Cross-entropy of tokens, for the objectives of language models.

The head is applied to one chunk of positions at a time and computed again in the backward pass, so
that the full logits (B, T, V) never exist when `chunks` > 1; a vocabulary split over the mesh is
never gathered.

Legend: B batch, T positions, D width, N chunks, C positions per chunk.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nn import losses, names
from nn.objectives.sums import Batch, Sums, Variables
from nn.parallel import pipeline, psum, split_axis
from nn.parallel.mesh import current_rules


@dataclasses.dataclass(frozen=True)
class Options:
    label_smoothing: float = 0.0  # probability spread over the vocabulary
    z_loss: float = 0.0  # weight of the squared log-partition (Chowdhery et al. 2022)
    chunks: int = 1  # pieces in which the logits are computed

    def __post_init__(self) -> None:
        if self.chunks < 1:
            raise ValueError(f"objective.chunks={self.chunks}: must be at least 1")


def token_losses(
    options: Options,
    model: nn.Module,
    variables: Variables,
    hidden_BTD: jax.Array,
    targets_BT: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Loss (nats) of each target, and 1 where it is the likeliest token, else 0, float32.

    hidden_BTD: final states of some positions, with the targets of the same ones
      (`head_positions` of the model).
    Raises ValueError when chunks does not divide the positions.
    """
    split = split_axis("vocab", model.config.vocab_size)
    weight: Any = None
    if options.chunks > 1:  # gathered before the loop, not in each of its iterations
        weight = model.apply(variables, hidden_BTD, method="head_weight")

    def chunk(hidden_BCD: jax.Array, targets_BC: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits: Any = model.apply(variables, hidden_BCD, weight, method="head")
        loss_BC = losses.softmax_cross_entropy(
            logits,
            targets_BC,
            label_smoothing=options.label_smoothing,
            z_loss=options.z_loss,
            axis_name=split,
        )
        return loss_BC, losses.correct(logits, targets_BC, axis_name=split)

    return _over_chunks(chunk, options.chunks, hidden_BTD, targets_BT)


def token_sums(
    options: Options,
    model: nn.Module,
    variables: Variables,
    hidden_BTD: jax.Array,
    targets_BT: jax.Array,
    mask_BT: jax.Array,
) -> Sums:
    """Sums of "loss" and "accuracy" over the positions of `hidden_BTD`; targets and mask are those
    of all positions. Raises as `token_losses`."""
    targets_BT, mask_BT = model.head_positions(targets_BT, mask_BT)
    loss_BT, hit_BT = token_losses(options, model, variables, hidden_BTD, targets_BT)
    count = jnp.sum(mask_BT)
    return {
        "loss": (jnp.sum(loss_BT * mask_BT), count),
        "accuracy": (jnp.sum(hit_BT * mask_BT), count),
    }


def with_aux(found: Sums, aux: dict[str, jax.Array], count: jax.Array) -> Sums:
    """The sums, with what the blocks add to the loss of every token, and their metrics."""
    extra = {name: (value * count, count) for name, value in aux.items()}
    if "loss" in extra:
        found["loss"] = (found["loss"][0] + extra.pop("loss")[0], count)
    return {**found, **extra}


def one_f_one_b(
    options: Options,
    model: nn.Module,
    variables: Variables,
    inputs: list[jax.Array | None],
    batch: Batch,
    key: jax.Array,
) -> Sums:
    """`token_sums` where the pipeline begins a microbatch's backward pass with its loss.

    inputs: of the model's `stages`; batch: "targets" and "mask" (B, T).
    """
    params = variables["params"]
    bound = model.bind({"params": params}, rngs={"dropout": key})
    carry, weights, stage = bound.stages(*inputs)
    targets_BT, mask_BT = batch["targets"], batch["mask"]
    parts = current_rules().microbatches

    def last(rest: Any, carry: Any, part: Any) -> tuple[jax.Array, Sums]:
        own = {"params": rest}
        hidden_BTD: Any = model.apply(own, carry[0], method="states")
        rows = pipeline.rows((targets_BT, mask_BT), part, parts, targets_BT.shape[0])
        found = token_sums(options, model, own, hidden_BTD, *rows)
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


def _over_chunks(
    chunk: Any, chunks: int, hidden_BTD: jax.Array, targets_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`chunk` of every piece of dimension 1, each computed again in the backward pass."""
    if chunks == 1:
        found: tuple[jax.Array, jax.Array] = chunk(hidden_BTD, targets_BT)
        return found
    B, T = targets_BT.shape
    if T % chunks:
        raise ValueError(
            f"objective.chunks={chunks} does not divide {T} positions; "
            f"nearest: {names.nearest_divisor(T, chunks)}"
        )

    def pieces(x: jax.Array) -> jax.Array:
        return x.reshape(B, chunks, -1, *x.shape[2:]).swapaxes(0, 1)

    step = jax.checkpoint(chunk)
    found = jax.lax.map(lambda piece: step(*piece), (pieces(hidden_BTD), pieces(targets_BT)))
    return found[0].swapaxes(0, 1).reshape(B, T), found[1].swapaxes(0, 1).reshape(B, T)
