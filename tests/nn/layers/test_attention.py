"""Attention against its formula, written out head by head in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn.layers.attention import Attention
from nn.layers.dot_product import attend
from nn.layers.position import Rotary, alibi_slopes, rotate, sinusoids
from nn.parallel.pattern import attention_mask


def by_hand(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """q (B, T, H, K), k and v (B, G, S, K), mask (B, T, S); float64."""
    out = np.zeros(q.shape)
    group = q.shape[2] // k.shape[1]
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            scores = q[b, :, h] @ k[b, h // group].T / np.sqrt(q.shape[-1])
            scores = np.where(mask[b], scores, -np.inf)
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            out[b, :, h] = weights / weights.sum(axis=-1, keepdims=True) @ v[b, h // group]
    return out


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [0, 3])
def test_attention_equals_its_formula(kv_heads: int, causal: bool, window: int) -> None:
    rng = np.random.default_rng(0)
    q = rng.normal(size=(2, 7, 6, 5))
    k, v = rng.normal(size=(2, 2, kv_heads, 7, 5))
    segments = np.asarray([[1] * 7, [1] * 4 + [2] * 3])
    place = np.arange(7)[None]
    distance = place[:, :, None] - place[:, None, :]
    allowed = segments[:, :, None] == segments[:, None, :]
    if causal:
        allowed = allowed & (distance >= 0)
    if window:
        allowed = allowed & (np.abs(distance) < window)
    mask = attention_mask(
        jnp.asarray(place),
        jnp.asarray(place),
        causal=causal,
        window=window,
        query_segments=jnp.asarray(segments),
        key_segments=jnp.asarray(segments),
    )
    out, weights = attend(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)), mask)
    np.testing.assert_allclose(out, by_hand(q, k, v, allowed), atol=2e-6)
    np.testing.assert_allclose(weights.sum(axis=-1), 1.0, rtol=1e-5)


def test_cross_attention_looks_at_the_memory_only() -> None:
    layer = Attention(heads=4, kv_heads=2, head_dim=8, cross=True)
    x = jax.random.normal(jax.random.key(0), (2, 5, 16))
    memory = jax.random.normal(jax.random.key(1), (2, 9, 16))
    positions = jnp.zeros((2, 5), jnp.int32)
    variables = layer.init(jax.random.key(2), x, positions, memory_BSD=memory)
    y, _ = layer.apply(variables, x, positions, memory_BSD=memory)
    again, _ = layer.apply(variables, x, positions, memory_BSD=memory[:, ::-1])
    assert y.shape == x.shape
    np.testing.assert_allclose(y, again, atol=1e-6)  # a set: order of the memory is not seen


def test_rotary_scores_depend_on_distance_only() -> None:
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 16))
    rotary = Rotary()

    def score(i: int, j: int) -> float:
        at = [rotary.table(jnp.asarray([[p]]), 16) for p in (i, j)]
        return float(jnp.sum(rotate(q, at[0]) * rotate(k, at[1])))

    assert score(3, 1) == pytest.approx(score(103, 101), abs=1e-4)
    assert score(3, 1) != pytest.approx(score(3, 2), abs=1e-3)


def test_rotary_scalings() -> None:
    plain, _ = Rotary().frequencies(64)
    linear, _ = Rotary(scaling="linear", factor=4.0).frequencies(64)
    np.testing.assert_allclose(linear, plain / 4)
    ntk, _ = Rotary(scaling="ntk", factor=4.0).frequencies(64)
    np.testing.assert_allclose([ntk[0], ntk[-1]], [plain[0], plain[-1] / 4], rtol=1e-12)
    llama, _ = Rotary(scaling="llama3", factor=8.0, original_length=8192).frequencies(64)
    turns = 8192 * plain / (2 * np.pi)
    np.testing.assert_allclose(llama[turns > 4], plain[turns > 4])
    np.testing.assert_allclose(llama[turns < 1], plain[turns < 1] / 8)
    assert (np.diff(llama) < 0).all()
    yarn, scale = Rotary(scaling="yarn", factor=16.0, low=1.0, high=32.0).frequencies(64)
    assert yarn[0] == plain[0] and yarn[-1] == pytest.approx(plain[-1] / 16)
    assert scale == pytest.approx(0.1 * np.log(16) + 1)
    with pytest.raises(ValueError, match="nearest: 'llama3'"):
        Rotary(scaling="lama3").frequencies(64)


def test_alibi_slopes() -> None:
    np.testing.assert_allclose(alibi_slopes(8), 2.0 ** -np.arange(1, 9))
    twelve = alibi_slopes(12)
    np.testing.assert_allclose(twelve[:8], alibi_slopes(8))
    np.testing.assert_allclose(twelve[8:], 2.0 ** -np.asarray([0.5, 1.5, 2.5, 3.5]))


def test_sinusoids_are_rotated_by_a_shift() -> None:
    table = np.asarray(sinusoids(jnp.arange(50)[None], 8))[0]
    assert table.shape == (50, 8)
    np.testing.assert_allclose((table**2).sum(axis=-1), 4.0, rtol=1e-5)
    shift = table @ table.T
    np.testing.assert_allclose(shift[3, 7], shift[20, 24], rtol=1e-4)
