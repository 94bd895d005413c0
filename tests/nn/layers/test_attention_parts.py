"""A causal row that is cut into parts equals the whole row, with less to multiply."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn.analysis import flops
from nn.layers.dot_product import attend
from nn.layers.position import alibi_slopes
from nn.parallel import parse_rules
from nn.parallel.pattern import attention_mask
from tests import parallel_cases as cases

HEADS, WIDTH = 6, 5


def problem(length: int, kv_heads: int, window: int) -> tuple[Callable[..., Any], list[jax.Array]]:
    """`attend` of q, k and v with a packed mask and a bias, and what to call it with."""
    random = np.random.default_rng(0)
    place = jnp.arange(length)[None]
    segments = jnp.asarray(random.integers(0, 2, (2, 1)) + (np.arange(length) > length // 3))
    mask = attention_mask(
        place,
        place,
        causal=True,
        window=window,
        query_segments=segments,
        key_segments=segments,
    )
    slopes = jnp.asarray(alibi_slopes(HEADS))[None, :, None, None]
    bias = -slopes * jnp.abs(place[0][:, None] - place[0][None])[None, None].astype(jnp.float32)
    shapes = [(2, length, HEADS, WIDTH)] + [(2, kv_heads, length, WIDTH)] * 2
    arrays = [jnp.asarray(random.normal(size=s), jnp.float32) for s in shapes]

    def run(causal: bool, *qkv: jax.Array) -> tuple[jax.Array, jax.Array]:
        return attend(*qkv, mask, bias, causal=causal)

    return run, arrays


@pytest.mark.parametrize("length", [100, 128, 320])  # 1, 2 and 4 parts
@pytest.mark.parametrize(("kv_heads", "window"), [(6, 0), (2, 40), (1, 0)])
def test_parts_equal_the_whole(length: int, kv_heads: int, window: int) -> None:
    run, arrays = problem(length, kv_heads, window)
    results = []
    for causal in (True, False):
        out, pullback = jax.vjp(lambda *qkv, causal=causal: run(causal, *qkv), *arrays)
        results.append([*out, *pullback((jnp.cos(out[0]), jnp.sin(out[1])))])
    for parts, whole in zip(*results, strict=True):
        assert parts.shape == whole.shape
        np.testing.assert_allclose(parts, whole, atol=2e-5)


@pytest.mark.parametrize(("length", "left"), [(100, 1.0), (128, 3 / 4), (320, 5 / 8)])
def test_parts_multiply_less(length: int, left: float) -> None:
    run, arrays = problem(length, HEADS, 0)
    parts, whole = (flops.count(lambda *qkv, c=c: run(c, *qkv), *arrays) for c in (True, False))
    assert parts.total == left * whole.total


@pytest.mark.slow
def test_long_rows_on_a_mesh() -> None:
    """The rows of the shared cases are too short to be cut."""
    config = cases.family("transformer").Config(
        vocab_size=96, context_length=128, dim=32, num_layers=2, num_heads=8, num_kv_heads=4
    )
    random = np.random.default_rng(0)
    tokens = random.integers(0, 96, (8, 129)).astype(np.int32)
    rows = np.ones((8, 1), np.int32)
    second = np.arange(128) >= 40
    batch = {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segments": rows * (1 + second).astype(np.int32),
        "positions": rows * np.where(second, np.arange(128) - 40, np.arange(128)).astype(np.int32),
        "mask": np.ones((8, 128), np.float32),
    }

    def gradients(sizes: dict[str, int]) -> Any:
        rule = cases.make_rule("transformer", config, sizes, parse_rules("", True))
        state = cases.initial_state(rule, 0)
        found = jax.jit(rule.gradients)(state, cases.to_mesh(rule, batch))
        return jax.device_get(found[0])

    error, leaf = cases.worst(gradients({"fsdp": 2, "tensor": 4}), gradients({}))
    assert error <= 1e-5, f"gradient of {leaf}: relative error {error:.1e}"
