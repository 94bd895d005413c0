"""What is kept of a distribution, against its definition computed one token at a time."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.run import logits
from launch.run.logits import Sampling

ROWS, V = 5, 11
LOGITS = np.random.default_rng(0).normal(scale=2.0, size=(ROWS, V)).astype(np.float32)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def kept_of(row: np.ndarray, how: Sampling) -> np.ndarray:
    """Probabilities after temperature, top-k, top-p and min-p, each one renormalised."""
    p = softmax(row.astype(np.float64) / how.temperature)
    order = np.argsort(-p)
    if how.top_k:
        p[order[how.top_k :]] = 0
        p /= p.sum()
    mass = 0.0
    for token in order:
        if mass >= how.top_p:
            p[token] = 0
        mass += p[token]
    p /= p.sum()
    p[p < how.min_p * p.max()] = 0
    return p / p.sum()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.6},
        {"top_k": 3},
        {"top_k": V},
        {"top_p": 0.7},
        {"top_p": 1e-6},
        {"min_p": 0.2},
        {"min_p": 1.0},
        {"temperature": 1.7, "top_k": 7, "top_p": 0.9, "min_p": 0.1},
        {"temperature": 1.7, "top_k": 5, "top_p": 0.6},
    ],
)
def test_each_warper_keeps_what_its_definition_keeps(options: dict[str, Any]) -> None:
    how = Sampling(**options)
    got = jax.nn.softmax(logits.shaped(jnp.asarray(LOGITS), how))
    expected = np.stack([kept_of(row, how) for row in LOGITS])
    np.testing.assert_allclose(got, expected, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(got) > 0, expected > 0)


def test_the_repetition_penalty_falls_on_tokens_of_the_row() -> None:
    tokens = np.asarray([[1, 2, 1, 9], [0, 0, 0, 0], [10, 3, 5, 7]], np.int32)
    ends = np.asarray([3, 1, 4], np.int32)  # what lies after them does not count
    x = LOGITS[:3]
    expected = x.copy()
    for row, (line, end) in enumerate(zip(tokens, ends, strict=True)):
        for token in set(line[:end].tolist()):
            expected[row, token] = x[row, token] * (1.5 if x[row, token] < 0 else 1 / 1.5)
    got = logits.penalize(jnp.asarray(x), jnp.asarray(tokens), jnp.asarray(ends), 1.5)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert len(np.unique(np.sign(x[expected != x]))) == 2  # both kinds were there


def test_a_rule_of_the_caller_sees_the_row() -> None:
    """After the penalty, with the tokens so far and how many of them are new."""

    def rule(x: jax.Array, tokens: jax.Array, ends: jax.Array, made: jax.Array) -> jax.Array:
        last = jnp.take_along_axis(tokens, ends[:, None] - 1, axis=1)
        return x + last + 100.0 * made[:, None]

    tokens, ends = jnp.asarray([[1, 2, 0], [4, 0, 0]]), jnp.asarray([2, 1])
    how = Sampling(repetition_penalty=2.0)
    got = logits.adjust(jnp.full((2, 5), 8.0), tokens, ends, jnp.asarray([1, 1]), how, rule)
    np.testing.assert_array_equal(got, [[110, 106, 106, 110, 110], [12, 12, 12, 12, 8]])


@pytest.mark.parametrize(
    "options",
    [
        *({"temperature": x} for x in (-1.0, float("nan"), float("inf"))),
        *({"top_k": -1}, {"top_p": 0}, {"top_p": 1.1}, {"min_p": -0.1}, {"min_p": 1.5}),
        *({"repetition_penalty": x} for x in (0.0, float("nan"), float("inf"))),
        *({"beams": 0}, {"beams": 2}, {"length_penalty": float("nan")}),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Sampling(**options)
