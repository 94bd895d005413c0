"""Predict hidden tokens: the cross-entropy of a masked language model (Devlin et al. 2018).

Some tokens of each row are chosen; most of these are hidden behind a token of their own, some are
replaced by another and some are left as they are, and the model says which token each was. What is
chosen is a function of the key and of the global position, so it is the same on every mesh. Where
a batch says of its rows whether their second sentence follows the first, that is learned too.

Legend: B batch, T positions.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from nn import losses
from nn.objectives import token_loss
from nn.objectives.sums import Batch, Sums, Variables, apply
from nn.parallel import BATCH_AXES, pipeline, psum
from nn.parallel.mesh import AXES, SEQUENCE_AXES
from nn.parallel.random import positional_bits, rows_here
from nn.parallel.sequence import columns

SEQUENCE = ("inputs", "segments", "positions", "types", "mask")
TASKS = ("masked_token", "next_token")  # of the data sets that it learns from
ONE_F_ONE_B = True  # without sentences


@dataclasses.dataclass(frozen=True)
class Config(token_loss.Options):
    mask_token: int = -1  # the token that hides others; -1: the last of the vocabulary
    special_tokens: tuple[int, ...] = ()  # those that are never chosen
    rate: float = 0.15  # share of the tokens that are chosen
    hidden: float = 0.8  # share of the chosen that are hidden
    replaced: float = 0.1  # share of the chosen that become any token; the rest stay

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.rate <= 1.0:
            raise ValueError(f"objective.rate={self.rate}: must be in (0, 1]")
        if min(self.hidden, self.replaced) < 0 or self.hidden + self.replaced > 1.0:
            raise ValueError(
                f"objective.hidden={self.hidden}, objective.replaced={self.replaced}: "
                "shares of one whole; nearest: 0.8, 0.1"
            )


def sums(
    config: Config,
    model: nn.Module,
    variables: Variables,
    batch: Batch,
    key: jax.Array,
    train: bool,
) -> tuple[Sums, Variables]:
    """Sums over this shard's chosen tokens of "loss" (nats) and "accuracy".

    With sentences the loss is the sum of both means, and "next_sentence_loss" and
    "next_sentence_accuracy" are of the rows.

    batch: inputs (B, T) int32, mask (B, T) float32, 1 where a token may be chosen; if there are
      any: segments, positions, types (B, T) int32, and next_sentence (B,) int32, 0 where the second
      sentence follows the first and 1 where it does not.
    Raises ValueError where the model has no such heads, or `mask_token` is not in the vocabulary.
    """
    model = model.clone(train=train)
    size = model.config.vocab_size
    if not -1 <= config.mask_token < size:
        raise ValueError(
            f"objective.mask_token={config.mask_token} is not in the vocabulary of {size}; "
            f"nearest: {size - 1}"
        )
    tokens_BT, chosen_BT = corrupted(config, batch, size, jax.random.fold_in(key, 1))
    wanted = ("positions", "segments", "types")
    inputs = [tokens_BT, *(batch[name] if name in batch else None for name in wanted)]
    seen = {"targets": batch["inputs"], "mask": chosen_BT}
    sentences = "next_sentence" in batch
    if train and pipeline.alternates():
        if sentences:
            raise ValueError("mesh.schedule='1f1b' learns no sentences; nearest: 'gpipe'")
        return token_loss.one_f_one_b(config, model, variables, inputs, seen, key), variables
    (hidden_BTD, pair_B2, aux), variables = apply(
        model, variables, *inputs, key=key, train=train, method="hidden"
    )
    found = token_loss.token_sums(config, model, variables, hidden_BTD, **_places(seen))
    if sentences:
        if pair_B2 is None:
            raise ValueError(
                f"the batch says which sentences follow, model.head={model.config.head!r} does "
                "not; nearest: 'masked_token_and_next_sentence'"
            )
        rows = _sentences(pair_B2, batch)
        mean = psum(rows["next_sentence_loss"][0], AXES) / jnp.maximum(
            psum(rows["next_sentence_loss"][1], AXES), 1
        )
        aux = {**aux, "loss": aux["loss"] + mean if "loss" in aux else mean}
        found |= rows
    return token_loss.with_aux(found, aux, found["loss"][1]), variables


def _places(seen: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {f"{name}_BT": x for name, x in seen.items()}


def _sentences(pair_B2: jax.Array, batch: Batch) -> Sums:
    """Loss and accuracy of the rows that have a token which counts."""
    labels_B = batch["next_sentence"]
    count_B = psum(batch["mask"].sum(axis=1), SEQUENCE_AXES)
    real_B = (count_B > 0).astype(jnp.float32)
    loss_B = losses.softmax_cross_entropy(pair_B2, labels_B)
    hit_B = losses.correct(pair_B2, labels_B)
    count = real_B.sum()
    return {
        "next_sentence_loss": (jnp.sum(loss_B * real_B), count),
        "next_sentence_accuracy": (jnp.sum(hit_B * real_B), count),
    }


def corrupted(
    config: Config, batch: Batch, vocab_size: int, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """What the model sees of the tokens, (B, T) int32, and which are chosen, (B, T) float32.

    Never chosen are special tokens, padding (segment 0) and what the mask leaves out.
    """
    tokens_BT = batch["inputs"]
    may_BT = batch["mask"] > 0
    if "segments" in batch:
        may_BT &= batch["segments"] > 0
    for token in config.special_tokens:
        may_BT &= tokens_BT != token
    # One number chooses a token and says what becomes of it: below rate * hidden, and so on.
    number_BT = _bits(jax.random.fold_in(key, 0), tokens_BT)

    def below(share: float) -> jax.Array:
        return may_BT & (number_BT < jnp.uint32(min(round(share * 2**32), 2**32 - 1)))

    other_BT = (_bits(jax.random.fold_in(key, 1), tokens_BT) % vocab_size).astype(jnp.int32)
    mask_token = config.mask_token if config.mask_token >= 0 else vocab_size - 1
    seen_BT = jnp.where(below(config.rate * (config.hidden + config.replaced)), other_BT, tokens_BT)
    seen_BT = jnp.where(below(config.rate * config.hidden), mask_token, seen_BT)
    return seen_BT, below(config.rate).astype(jnp.float32)


def _bits(key: jax.Array, tokens_BT: jax.Array) -> jax.Array:
    """Random uint32 of each position of the global batch."""
    rows, length = tokens_BT.shape
    places = [rows_here(rows, BATCH_AXES), columns(length)]
    return positional_bits(key, tokens_BT.shape, [BATCH_AXES, SEQUENCE_AXES], places)


derived = token_loss.derived
