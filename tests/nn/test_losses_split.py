"""Losses whose classes or examples are split over mesh axes: values and slopes of one device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from nn import losses
from nn.parallel import make_mesh
from nn.parallel.collectives import psum
from nn.parallel.mesh import AXES, present

Array = jax.Array


def data() -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(0)
    logits = jnp.asarray(3 * rng.normal(size=(4, 3, 16)), jnp.float32)
    return logits, jnp.asarray(rng.integers(-1, 17, (4, 3))), jax.nn.softmax(logits[::-1], axis=-1)


def run(
    loss: Callable[..., Array], sizes: dict[str, int], specs: tuple[P, ...], *args: Array
) -> Any:
    """Values, and the gradients in all float arguments of a weighted sum, on a mesh."""
    floats = [i for i, x in enumerate(args) if jnp.issubdtype(x.dtype, jnp.inexact)]

    def local(*args: Array) -> Any:
        def weighted(*args: Array) -> Any:
            y = loss(*args)
            return jnp.sum(y * jnp.square(y)), y

        slopes, y = jax.grad(weighted, argnums=floats, has_aux=True)(*args)
        return psum(jnp.sum(y), AXES), slopes

    if not sizes:
        return jax.jit(local)(*args)
    mesh = make_mesh({"data": 8 // int(np.prod(list(sizes.values()))), **sizes})
    specs = tuple(
        P(*(present(mesh, (e,) if isinstance(e, str) else e or ()) or None for e in spec))
        for spec in specs
    )
    out = (P(), tuple(specs[i] for i in floats))
    return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=out))(*args)


def agree(a: Any, b: Any) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-6, atol=2e-6 * float(jnp.abs(y).max()))


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 0.01}], ids=str)
@pytest.mark.parametrize("sizes", [{"tensor": 4}, {"tensor": 2, "fsdp": 2}, {"tensor": 8}], ids=str)
def test_classes_are_split(sizes: dict[str, int], options: dict[str, float], soft: bool) -> None:
    logits, hard, probabilities = data()
    labels = probabilities if soft else hard
    rows = ("data", "fsdp")

    def loss(logits: Array, labels: Array) -> Array:
        return losses.softmax_cross_entropy(logits, labels, axis_name="tensor", **options)

    specs = (P(rows, None, "tensor"), P(rows, None, "tensor") if soft else P(rows))
    agree(run(loss, sizes, specs, logits, labels), run(loss, {}, specs, logits, labels))


def test_logits_that_all_share() -> None:
    """The same logits everywhere meet labels that differ: the gradient is the sum over shards."""
    logits, labels, _ = data()
    specs = (P(), P(None, "data"))

    def loss(logits: Array, labels: Array) -> Array:
        return losses.softmax_cross_entropy(jnp.tile(logits, (1, labels.shape[1], 1)), labels)

    few = logits[:, :1]
    labels = jnp.tile(labels, (1, 8))
    agree(run(loss, {"data": 8}, specs, few, labels), run(loss, {}, specs, few, labels))


def test_whole_classes_on_a_mesh() -> None:
    """Where the classes are not split, naming the axis changes nothing."""
    logits, labels, _ = data()
    specs = (P("data"), P("data"))

    def loss(logits: Array, labels: Array) -> Array:
        return losses.softmax_cross_entropy(logits, labels, label_smoothing=0.1, axis_name="tensor")

    agree(run(loss, {"tensor": 2}, specs, logits, labels), run(loss, {}, specs, logits, labels))


def test_rank_of_split_classes() -> None:
    logits, labels, _ = data()
    logits = jnp.round(logits)  # with ties across shards
    mesh = make_mesh({"data": 2, "tensor": 4})

    def local(logits: Array, labels: Array) -> Array:
        return losses.rank(logits, labels, axis_name="tensor")

    specs = (P("data", None, "tensor"), P("data"))
    split = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P("data")))
    np.testing.assert_array_equal(split(logits, labels), losses.rank(logits, labels))


@pytest.mark.parametrize("loss", [losses.info_nce, losses.nt_xent])
@pytest.mark.parametrize("sizes", [{"data": 8}, {"data": 2, "expert": 2, "fsdp": 2}], ids=str)
def test_negatives_of_all_shards(loss: Callable[..., Array], sizes: dict[str, int]) -> None:
    rng = np.random.default_rng(1)
    a, b = (jnp.asarray(rng.normal(size=(16, 5)), jnp.float32) for _ in range(2))
    axes = ("data", "fsdp", "expert")

    def split(a: Array, b: Array) -> Array:
        return loss(a, b, axis_name=axes)

    specs = (P(axes), P(axes))
    agree(run(split, sizes, specs, a, b), run(split, {}, specs, a, b))
