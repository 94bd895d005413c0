"""Attention over shards of `context` equals attention over the whole row, gradients too."""

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
from nn.layers.attention import ALL, Attention
from nn.layers.dot_product import attend
from nn.layers.position import alibi_slopes
from nn.parallel import ring
from nn.parallel.pattern import Pattern, attention_mask
from nn.parallel.ring import Rows, block_attention
from nn.parallel.sequence import columns, order
from nn.parallel.ulysses import ulysses_attention

B, T, K = 2, 64, 8


@dataclasses.dataclass(frozen=True)
class Case:
    heads: int = 8
    kv_heads: int = 8
    causal: bool = True
    window: int = 0
    segments: bool = False
    alibi: bool = False
    soft_cap: float = 0.0
    traced: bool = False  # the window is a number of the trace


CASES = {
    "causal": Case(),
    "grouped": Case(kv_heads=2),
    "one key head": Case(kv_heads=1, segments=True),
    "three key heads": Case(heads=24, kv_heads=3),
    "bidirectional": Case(causal=False),
    "window": Case(kv_heads=4, window=19),
    "window on both sides": Case(causal=False, window=9),
    "traced window": Case(kv_heads=4, window=19, traced=True),
    "soft cap": Case(kv_heads=4, window=19, soft_cap=1.5, segments=True),
    "documents": Case(segments=True),
    "linear biases": Case(alibi=True, kv_heads=4, segments=True),
}


def inputs(case: Case, dtype: Any = np.float32) -> tuple[list[jax.Array], jax.Array]:
    """q, k, v and a cotangent, and the documents of the rows."""
    rng = np.random.default_rng(0)
    shapes = [(B, T, n, K) for n in (case.heads, case.kv_heads, case.kv_heads, case.heads)]
    ends = np.asarray([[20, 50], [7, 33]])
    segments = (np.arange(T)[None, None] >= ends[:, :, None]).sum(axis=1).astype(np.int32)
    return [jnp.asarray(rng.normal(size=s), dtype) for s in shapes], jnp.asarray(segments)


def whole(case: Case, q: Any, k: Any, v: Any, segments: Any) -> jax.Array:
    """By the matrix of all scores."""
    place = jnp.arange(T)[None]
    known = segments if case.segments else None
    mask = attention_mask(
        place,
        place,
        causal=case.causal,
        window=case.window,
        query_segments=known,
        key_segments=known,
    )
    bias = None
    if case.alibi:
        distance = jnp.abs(place[0][:, None] - place[0][None]).astype(jnp.float32)
        bias = -jnp.asarray(alibi_slopes(case.heads))[None, :, None, None] * distance[None, None]
    cap = {"soft_cap": case.soft_cap}
    return attend(q, k.swapaxes(1, 2), v.swapaxes(1, 2), mask, bias, **cap)[0]


def local(case: Case, how: str, q: Any, k: Any, v: Any, segments: Any) -> jax.Array:
    """On one shard."""
    own = columns(q.shape[1])
    place = own[None] + jnp.zeros_like(segments) if case.alibi else None
    rows = Rows(own, segments if case.segments else None, place)
    window = jnp.asarray(case.window) if case.traced else case.window
    pattern = Pattern(case.causal, window)
    slopes = jnp.asarray(alibi_slopes(case.heads)) if case.alibi else None
    options: Any = {"slopes_H": slopes, "soft_cap": case.soft_cap}
    if how == "ulysses":
        return ulysses_attention(q, k, v, pattern, rows, rows, **options)
    return block_attention(q, k, v, pattern, rows, rows, ring=how == "ring", **options)


def results(run: Callable[..., jax.Array], arrays: list[jax.Array], segments: Any) -> list[Any]:
    """The output and the gradients of q, k and v."""

    def both(q: Any, k: Any, v: Any, ct: Any) -> Any:
        out, pull = jax.vjp(lambda *qkv: run(*qkv, segments), q, k, v)
        return [out, *pull(ct.astype(out.dtype))]

    return [np.asarray(x, np.float32) for x in jax.jit(both)(*arrays)]


def over_context(case: Case, how: str, shards: int) -> Callable[..., jax.Array]:
    rules = parallel.Rules(attention=how)
    places = order(T, shards, rules.layout)
    mesh = parallel.make_mesh({"context": shards}, jax.devices()[:shards])
    spec = P(None, "context")
    spread = parallel.spmd(functools.partial(local, case, how), mesh, rules, (spec,) * 4, spec)

    def run(*args: Any) -> jax.Array:
        out: jax.Array = spread(*(x[:, places] for x in args))
        return out[:, np.argsort(places)]

    return run


@pytest.mark.parametrize("how", ["ring", "ulysses"])
@pytest.mark.parametrize("name", CASES)
def test_shards_equal_the_whole(name: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "TILE", 4 if how == "ring" else 16)  # several tiles to a shard
    case = CASES[name]
    arrays, segments = inputs(case)
    found = results(over_context(case, how, 4 if how == "ring" else 8), arrays, segments)
    expected = results(functools.partial(whole, case), arrays, segments)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("shards", [2, 8])
def test_any_number_of_shards(shards: int) -> None:
    case = CASES["grouped"]
    arrays, segments = inputs(case)
    found = results(over_context(case, "ring", shards), arrays, segments)
    expected = results(functools.partial(whole, case), arrays, segments)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("name", ["grouped", "linear biases"])
def test_bfloat16_has_float32_sums(name: str) -> None:
    """As near to the exact result as rounding of the inputs and outputs allows."""
    case = CASES[name]
    arrays, segments = inputs(case, jnp.bfloat16)
    found = results(over_context(case, "ring", 4), arrays, segments)
    wide = [x.astype(jnp.float32) for x in arrays]
    expected = results(functools.partial(whole, case), wide, segments)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-2 * np.abs(theirs).max())


def cross(layer: Attention, params: Any, x: Any, memory: Any, known: Any) -> jax.Array:
    """Attention to the known elements of a memory."""
    segments = jnp.ones_like(x[..., 0], jnp.int32)
    out: jax.Array = layer.apply(
        params, x, segments, ALL, segments, memory_BSD=memory, memory_segments_BS=known
    )[0]
    return out


@pytest.mark.parametrize("how", ["ring", "ulysses", "gather"])
def test_cross_attention(how: str) -> None:
    layer = Attention(heads=4, kv_heads=2, head_dim=8, cross=True)
    rng = np.random.default_rng(0)
    x, memory = (jnp.asarray(rng.normal(size=(2, n, 12)), jnp.float32) for n in (16, 24))
    known = jnp.asarray(np.arange(24) < [[17], [9]], jnp.int32)
    params = parallel.unbox(layer.init(jax.random.key(0), x, known[:, :16], memory_BSD=memory))
    run = functools.partial(cross, layer)
    mesh, spec = parallel.make_mesh({"context": 4}, jax.devices()[:4]), P(None, "context")
    rules = parallel.Rules(attention=how)
    spread = parallel.spmd(run, mesh, rules, (P(), spec, spec, spec), spec)

    def both(run: Any) -> Any:
        out, pull = jax.vjp(lambda *args: run(*args, known), params, x, memory)
        return [out, *jax.tree.leaves(pull(jnp.cos(out)))]

    compiled = jax.jit(both, static_argnums=0)
    for ours, theirs in zip(compiled(spread), compiled(run), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
    # Every shard has all queries: it gathers the memory, whose keys `context` splits.
    whole_queries = parallel.spmd(run, mesh, rules, (P(), P(), spec, spec), P("context"))
    found, expected = whole_queries(params, x, memory, known), run(params, x, memory, known)
    for own in np.split(np.asarray(found), 4):
        np.testing.assert_allclose(own, expected, atol=1e-6)
