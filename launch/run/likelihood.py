"""Log-likelihoods of tokens given those before them, on any mesh.

A text longer than the model's context is scored in windows, each token in one of them only. Windows
of like length share a batch, padded on the right, where a causal model does not look. The head is
applied to pieces of the positions, in float32, so that the logits of a batch never exist at once.

Legend: B rows of this shard, T positions, D width, v this shard's part of the vocabulary, C
positions of a piece.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from nn import losses, parallel
from nn.learning.task import Task
from nn.parallel import BATCH_AXES, split_axis
from nn.parallel.mesh import AXES

PIECE = 2**24  # most logits that a device holds at once, where positions can be cut finely enough
NARROWEST = 16  # positions of the narrowest batch: fewer widths, fewer compilations


class Request(NamedTuple):
    """Tokens of which those from number `first` on, at least 1, are to be scored."""

    tokens: Sequence[int]
    first: int


class Score(NamedTuple):
    """Of the scored tokens of a request: ln of their probability, their number, and whether each of
    them is the likeliest at its place, so that greedy decoding would have produced them."""

    log_likelihood: float
    tokens: int
    greedy: bool


class Window(NamedTuple):
    """The model reads tokens[start : stop - 1]; tokens[first : stop] are scored."""

    start: int
    first: int
    stop: int


def windows(length: int, first: int, context: int, stride: int) -> list[Window]:
    """Cut the tokens first ... length - 1 of a sequence into windows of at most `context` inputs.

    Each token is scored once. Token t is predicted from at least min(t, context - stride + 1)
    tokens: a smaller stride costs more windows and leaves more context to each of their first
    tokens. At most `stride` tokens at the end of a sequence are one window, with as much before
    them as fits.

    Raises:
      ValueError: a stride that is not in 1 ... context, or a first token with nothing before it.
    """
    check_stride(stride, context)
    if first < 1:
        raise ValueError(f"first={first}: a token needs at least one before it")
    found: list[Window] = []
    while first < length:
        stop = min(first + stride, length)
        if not found and stop < length:
            stop = min(max(stop, context + 1), length)  # what has all its context anyway
        found.append(Window(max(0, stop - 1 - context), first, stop))
        first = stop
    return found


def check_stride(stride: int, context: int) -> None:
    """ValueError where windows that are so far apart would leave tokens out, or never end."""
    if not 1 <= stride <= context:
        raise ValueError(
            f"--stride={stride}: must be from 1 to the context of {context} tokens; "
            f"nearest: {min(max(stride, 1), context)}"
        )


@dataclasses.dataclass(frozen=True)
class Scorer:
    """Scores requests with one model; compiles once per width of a batch.

    variables: "params" and, where the model has them, statistics, as they lie on the mesh.
    context: most tokens that the model reads. rows: windows of a batch, rounded up to what the mesh
    divides.
    """

    task: Task
    variables: Any
    context: int
    rows: int = 16

    def score(self, requests: Sequence[Request], stride: int | None = None) -> list[Score]:
        """One score per request; `stride` is that of `windows`, by default the context.

        Sums over windows are in float64. Raises what `windows` raises.
        """
        stride = self.context if stride is None else stride
        cut = [
            (number, window)
            for number, request in enumerate(requests)
            for window in windows(len(request.tokens), request.first, self.context, stride)
        ]
        cut.sort(key=lambda item: item[1].start - item[1].stop)  # the longest first
        found, misses = np.zeros(len(requests)), np.zeros(len(requests))
        rows = _round_up(self.rows, self._row_parts)
        for begin in range(0, len(cut), rows):
            part = cut[begin : begin + rows]
            sums = self._run(self._batch(requests, part, rows))
            for (number, _), loss, missed in zip(part, *sums, strict=False):
                found[number] -= loss
                misses[number] += missed
        return [
            Score(float(found[i]), max(len(r.tokens) - r.first, 0), not misses[i])
            for i, r in enumerate(requests)
        ]

    def _batch(
        self, requests: Sequence[Request], part: list[tuple[int, Window]], rows: int
    ) -> dict[str, np.ndarray]:
        """inputs, targets, positions and mask of some windows; rows without one are masked."""
        longest = max(window.stop - window.start - 1 for _, window in part)
        width = self.width(longest)
        batch = {name: np.zeros((rows, width), np.int32) for name in ("inputs", "targets")}
        mask = np.zeros((rows, width), np.float32)
        for row, (number, (start, first, stop)) in enumerate(part):
            tokens = np.asarray(requests[number].tokens[start:stop], np.int32)
            batch["inputs"][row, : len(tokens) - 1] = tokens[:-1]
            batch["targets"][row, : len(tokens) - 1] = tokens[1:]
            mask[row, first - 1 - start : stop - 1 - start] = 1
        # Beyond the context lies padding only, which takes positions that the model has.
        places = np.minimum(np.arange(width, dtype=np.int32), self.context - 1)
        return {**batch, "positions": np.tile(places, (rows, 1)), "mask": mask}

    def width(self, longest: int) -> int:
        """Positions of a batch: a power of two, or the context, and what the mesh divides."""
        sizes = self.task.mesh.shape
        power = max(NARROWEST, 2 ** math.ceil(math.log2(longest)))
        return _round_up(min(power, self.context), 2 * sizes["context"] * sizes["tensor"])

    @property
    def _row_parts(self) -> int:
        """What divides the rows: shards of the batch, and on each of them microbatches, stages."""
        sizes, parts = self.task.mesh.shape, self.task.rules.microbatches
        stages = math.lcm(parts, sizes["pipe"]) if sizes["pipe"] > 1 else 1
        return stages * math.prod(sizes[axis] for axis in BATCH_AXES)

    def _run(self, batch: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        task = self.task
        batch = task.arrange(batch)
        shardings = parallel.shardings(task.mesh, task.batch_specs(batch))
        found = self._compiled(self.variables, jax.device_put(batch, shardings))
        loss, misses = jax.device_get(found)
        return loss, misses

    @functools.cached_property
    def _compiled(self) -> Any:
        """`(variables, batch) -> (loss, misses)`, each one number per row, on every device."""
        task = self.task
        specs = task.batch_specs(dict.fromkeys(_BATCH, jax.ShapeDtypeStruct((2, 2), jnp.int32)))
        rows = parallel.batch_spec(task.mesh, 1)
        run = functools.partial(row_sums, task.model.clone(train=False))
        spread = parallel.spmd(
            run, task.mesh, task.rules, (task.variable_specs(), specs), (rows, rows)
        )
        # On every device, so that every process can read them.
        return jax.jit(spread, out_shardings=NamedSharding(task.mesh, P()))


_BATCH = ("inputs", "targets", "positions", "mask")


def row_sums(
    model: nn.Module, variables: Any, batch: dict[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Per row, sums over the masked-in positions: -ln p(target), and targets not the likeliest.

    batch: inputs, targets, positions (B, T) int32, mask (B, T) float32. Returns two (B,) float32.
    """
    count = batch["inputs"].shape[0]
    out: Any = model.apply(variables, batch["inputs"], batch["positions"], None, method="hidden")
    hidden_BTD = out[0].astype(jnp.promote_types(out[0].dtype, jnp.float32))
    split = split_axis("vocab", model.config.vocab_size)
    rows_BT = jnp.arange(count)[:, None] + jnp.zeros_like(batch["targets"])
    # Stages of a pipeline share rows or positions out: each position takes its row's number along.
    beside = model.head_positions(batch["targets"], batch["mask"], rows_BT)
    weight: Any = model.apply(variables, hidden_BTD, method="head_weight")

    def piece(arrays: Any) -> jax.Array:
        hidden_BCD, targets_BC, mask_BC, rows_BC = arrays
        logits: Any = model.apply(variables, hidden_BCD, weight, method="head")
        loss_BC = losses.softmax_cross_entropy(logits, targets_BC, axis_name=split)
        miss_BC = 1 - losses.correct(logits, targets_BC, axis_name=split)
        both = jnp.stack([(x_BC * mask_BC).reshape(-1) for x_BC in (loss_BC, miss_BC)], axis=1)
        return jax.ops.segment_sum(both, rows_BC.reshape(-1), count)

    vocabulary = model.config.vocab_size // (parallel.axis_size(split) if split else 1)
    number = _pieces(hidden_BTD.shape[0], hidden_BTD.shape[1], vocabulary)

    def cut(x: jax.Array) -> jax.Array:
        return x.reshape(x.shape[0], number, -1, *x.shape[2:]).swapaxes(0, 1)

    totals = jax.lax.map(piece, tuple(cut(x) for x in (hidden_BTD, *beside)))
    found = parallel.psum(totals.sum(axis=0), [a for a in AXES if a not in BATCH_AXES])
    return found[:, 0], found[:, 1]


def _pieces(rows: int, positions: int, vocabulary: int) -> int:
    """The fewest equal pieces of the positions whose logits are at most `PIECE`."""
    divisors = (n for n in range(1, positions + 1) if positions % n == 0)
    return next((n for n in divisors if rows * positions // n * vocabulary <= PIECE), positions)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
