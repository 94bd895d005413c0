"""Convolution and pooling over a split dimension of space equal those of the whole, in gradients
too."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from nn import parallel
from nn.layers.conv import Conv, ConvTranspose, avg_pool, global_avg_pool, max_pool
from nn.layers.norm import GroupNorm
from nn.parallel import halo
from tests import parallel_cases as cases

ORDERED = parallel.Rules(attention="ulysses")
SPLIT = P(None, "context")


def mesh_of(shards: int) -> jax.sharding.Mesh:
    return parallel.make_mesh({"context": shards}, jax.devices()[:shards])


def same(fn: Callable[..., jax.Array], shards: int, x: jax.Array, *weights: Any) -> None:
    """fn on shards of x's first spatial dimension equals fn, and so do all gradients."""
    spread = parallel.spmd(fn, mesh_of(shards), ORDERED, (SPLIT, *(P() for _ in weights)), SPLIT)
    results = []
    for run in (spread, fn):

        def both(x: Any, *weights: Any, run: Any = run) -> Any:
            out, pull = jax.vjp(run, x, *weights)
            return [out, *pull(jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))]

        results.append(jax.tree.leaves(jax.jit(both)(x, *weights)))
    for ours, theirs in zip(*results, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def image(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(
    ("shape", "options", "shards"),
    [
        ((2, 16, 3), {"kernel": (3,)}, 4),
        ((2, 16, 3), {"kernel": (7,)}, 8),  # from two neighbours on a side
        ((2, 16, 3), {"kernel": (5,), "dilation": 2}, 4),
        ((2, 16, 3), {"kernel": (4,), "padding": ((3, 0),)}, 4),  # causal
        ((2, 16, 3), {"kernel": (3,), "strides": 2}, 4),  # SAME: one element after
        ((2, 16, 3), {"kernel": (1,), "strides": 2, "padding": 0}, 4),
        ((2, 16, 4), {"kernel": (2,), "strides": 2, "padding": "VALID", "groups": 2}, 8),
        ((2, 8, 6, 3), {"kernel": (3, 3), "padding": 1}, 4),
        ((2, 8, 6, 3), {"kernel": (7, 5), "strides": (2, 1), "padding": (3, 0)}, 4),
        ((2, 8, 6, 3), {"kernel": (5, 3), "dilation": (2, 1)}, 2),
        ((2, 8, 6, 3), {"kernel": (3, 3), "strides": 2, "dilation": 2, "padding": 2}, 2),
    ],
)
def test_convolution(shape: tuple[int, ...], options: dict[str, Any], shards: int) -> None:
    x = image(*shape)
    layer = Conv(4, split=True, **options)
    params = parallel.unbox(layer.init(jax.random.key(0), x))
    same(lambda x, params: layer.apply(params, x), shards, x, params)


POOLS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "max": lambda x: max_pool(x, 3, 2, padding=1, split=True),
    "max, window 2": lambda x: max_pool(x, 2, split=True),
    "mean": lambda x: avg_pool(x, 3, 1, "SAME", split=True),
    "mean of elements": lambda x: avg_pool(x, 3, 2, 1, count_include_pad=False, split=True),
}


@pytest.mark.parametrize("name", POOLS)
def test_pooling(name: str) -> None:
    same(POOLS[name], 4, image(2, 16, 8, 3) - 5.0)  # a padding of 0 would win


def test_means_over_space() -> None:
    x = image(2, 16, 6, 4)
    norm = GroupNorm(2)
    params = parallel.unbox(norm.init(jax.random.key(0), x))
    same(lambda x, params: norm.apply(params, x), 4, x, params)
    run = parallel.spmd(global_avg_pool, mesh_of(4), ORDERED, SPLIT, P())
    np.testing.assert_allclose(jax.jit(run)(x), global_avg_pool(x), atol=1e-6)


@pytest.mark.parametrize(("before", "after"), [(0, 0), (3, 1), (9, 20), (-1, 2), (5, -2)])
def test_exchange(before: int, after: int) -> None:
    """Shards of 4 of 16 elements, as far as they reach and beyond the ends."""
    x = np.arange(1.0, 17.0)
    padded = np.pad(x, 20, constant_values=-7.0)
    expected = [padded[20 + 4 * i - before : 24 + 4 * i + after] for i in range(4)]
    run = parallel.spmd(
        lambda x: halo.exchange(x, 0, before, after, -7.0), mesh_of(4), ORDERED, P("context"),
        P("context"),
    )  # fmt: skip
    np.testing.assert_array_equal(jax.jit(run)(x), np.concatenate(expected))


@pytest.mark.parametrize(
    ("layer", "rules", "words"),
    [
        (Conv(4, (3,), padding="VALID", split=True), ORDERED, "makes 14 outputs, which must be 16"),
        (Conv(4, (3,), strides=3, split=True), ORDERED, "the stride must divide 4"),
        (Conv(4, (3,), split=True), parallel.Rules(), "lays them out in zigzag"),
        (ConvTranspose(4, (3,), split=True), ORDERED, "cannot split a transposed convolution"),
    ],
)
def test_what_cannot_be_split_is_refused(layer: Conv, rules: parallel.Rules, words: str) -> None:
    x = image(2, 16, 3)
    params = parallel.unbox(layer.init(jax.random.key(0), x))
    run = parallel.spmd(
        lambda params, x: layer.apply(params, x), mesh_of(4), rules, (P(), SPLIT), SPLIT
    )
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(run, params, x)


@pytest.mark.parametrize(
    ("sizes", "stem"),
    [
        ({"context": 4, "data": 2}, "cifar"),
        ({"context": 2, "tensor": 2, "fsdp": 2}, "cifar"),
        ({"context": 2, "data": 4}, "imagenet"),
    ],
)
def test_images_split_by_height(sizes: dict[str, int], stem: str) -> None:
    config = dataclasses.replace(cases.family("resnet").tiny(), stem=stem)
    reference = one_device(config)
    result = cases.measure("resnet", config, sizes, ORDERED)
    cases.assert_same(result, reference)


@functools.cache
def one_device(config: Any) -> cases.Result:
    return cases.measure("resnet", config, {})
