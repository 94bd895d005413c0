"""Muon: momentum whose matrices are made orthogonal, on one device or on a mesh.

Jordan 2024, "Muon: an optimizer for hidden layers in neural networks". The numbers are those of
`optax.contrib.scale_by_muon`. What Optax lacks is the way over a mesh: Newton-Schulz needs whole
matrices, and left to the partitioner each of its products becomes a collective. Here the matrices
of a stack, of which every shard holds a piece, are dealt out by one all-to-all, so that every shard
works on whole ones, its share of them, and a second all-to-all brings the pieces back.

Legend: N matrices, I inputs, O outputs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from optax.contrib import MuonDimensionNumbers

from nn.parallel import Rules, collectives, spmd

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan 2024
STEPS = 5


class State(NamedTuple):
    """step: updates done, int32; momentum: like the parameters."""

    step: jax.Array
    momentum: Any


def scale_by_muon(
    beta: float, dimensions: Any, shardings: Any = None
) -> optax.GradientTransformation:
    """Nesterov momentum, then the nearest orthogonal matrix, or close to it.

    Args:
      beta: decay of the momentum.
      dimensions: a `MuonDimensionNumbers` per parameter: its last dimensions, inputs before
        outputs; those before them stack matrices.
      shardings: a `NamedSharding` per parameter; None: all on one device.
    """

    def init(params: Any) -> State:
        return State(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(updates: Any, state: State, params: Any = None) -> tuple[Any, State]:
        step = optax.safe_increment(state.step)
        momentum = optax.tree.update_moment(updates, state.momentum, beta, 1)
        ahead = optax.tree.bias_correction(momentum, beta, optax.safe_increment(step))
        latest = optax.tree.bias_correction(updates, beta, step)
        moved = jax.tree.map(lambda m, g: beta * m + (1 - beta) * g, ahead, latest)
        places = jax.tree.map(lambda _: None, moved) if shardings is None else shardings
        return jax.tree.map(orthogonalize, moved, dimensions, places), State(step, momentum)

    return optax.GradientTransformation(init, update)


def orthogonalize(
    x: jax.Array, dimensions: MuonDimensionNumbers, sharding: NamedSharding | None = None
) -> jax.Array:
    """Each matrix of a stack made nearly orthogonal, wherever its pieces are."""
    inputs = len(dimensions.reduction_axis)
    inner = inputs + len(dimensions.output_axis)
    if sharding is None:
        return _orthogonal(x, inputs, inner)
    spec: Any = sharding.spec
    mesh: Any = sharding.mesh
    run = functools.partial(_on_mesh, inputs=inputs, axes=tuple(spec)[x.ndim - inner :])
    return spmd(run, mesh, Rules(), spec, spec)(x)


def _orthogonal(x: jax.Array, inputs: int, inner: int) -> jax.Array:
    """Of whole matrices: the last `inner` dimensions, `inputs` of them inputs."""
    shape = x.shape[x.ndim - inner :]
    rows = math.prod(shape[:inputs])
    return newton_schulz(x.reshape(-1, rows, math.prod(shape) // rows)).reshape(x.shape)


def _on_mesh(x: jax.Array, inputs: int, axes: Sequence[str | None]) -> jax.Array:
    """Of this shard's pieces; `axes` are those that split the dimensions of a matrix."""
    split = {d: a for d, a in enumerate(axes) if a is not None and collectives.bound([a])}
    pieces = x.reshape(-1, *x.shape[x.ndim - len(axes) :])
    if not split:
        whole = _orthogonal(pieces, inputs, len(axes))
    elif len(pieces) == 1:  # nothing to deal out: every shard works on the one matrix
        for d, axis in split.items():
            pieces = collectives.all_gather(pieces, axis, d + 1)
        whole = _orthogonal(pieces, inputs, len(axes))
        for d, axis in split.items():
            whole = collectives.local_slice(whole, axis, d + 1)
    else:
        whole = _dealt(pieces, inputs, split)
    return whole.reshape(x.shape)


def _dealt(pieces: jax.Array, inputs: int, split: dict[int, str]) -> jax.Array:
    """A stack of pieces: each shard gets whole matrices, an equal number, and returns them.

    The stack is filled up with zeros, which stay zeros, to a multiple of the shards.
    """
    N, *local = pieces.shape
    names = tuple(split.values())
    sizes = [collectives.axis_size(axis) for axis in names]
    shards = math.prod(sizes)
    padding = [(0, -N % shards)] + [(0, 0)] * len(local)
    x = collectives.all_to_all(jnp.pad(pieces, padding), names)
    # Now (*sizes, matrices, *local): what came from a shard goes to its place in the matrix.
    order, shape = [len(sizes)], [len(x) // shards]
    for d, size in enumerate(local):
        parts = [list(split).index(d)] if d in split else []
        order += [*parts, len(sizes) + 1 + d]
        shape.append(size * math.prod(sizes[i] for i in parts))
    apart = (*sizes, len(x) // shards, *local)
    whole = _orthogonal(x.reshape(apart).transpose(order).reshape(shape), inputs, len(local))
    back = whole.reshape([apart[i] for i in order]).transpose(np.argsort(order))
    return collectives.all_to_all(back.reshape(x.shape), names)[:N]


def newton_schulz(x_NIO: jax.Array) -> jax.Array:
    """U S' V^T for x = U S V^T, where S' is between about 0.7 and 1.2 (Jordan 2024)."""
    a, b, c = COEFFICIENTS
    tall = x_NIO.shape[1] > x_NIO.shape[2]
    x = x_NIO.swapaxes(1, 2) if tall else x_NIO  # the products below are of the shorter side
    x = x / (jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + 1e-8)
    for _ in range(STEPS):
        square = x @ x.swapaxes(1, 2)
        x = a * x + (b * square + c * square @ square) @ x
    return x.swapaxes(1, 2) if tall else x
