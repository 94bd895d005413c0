"""Generation against the full forward pass, one token at a time."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.run import decode
from launch.run.decode import Sampling
from nn import parallel
from nn.families import transformer

CONFIG = dataclasses.replace(transformer.tiny(), position="rotary", num_kv_heads=2, norm="rms")
MODEL = transformer.Model(CONFIG)
PARAMS = parallel.unbox(MODEL.init(jax.random.key(0), *transformer.example(CONFIG, 1)))["params"]
PROMPTS = [[5, 9, 2], [7], [1, 2, 3, 4, 5, 6]]


def continued(prompts: list[list[int]], how: Sampling, rows: list[int], new: int = 6) -> list[Any]:
    lengths = np.asarray([len(p) for p in prompts], np.int32)
    padded = np.zeros((len(prompts), max(lengths)), np.int32)
    for i, prompt in enumerate(prompts):
        padded[i, : len(prompt)] = prompt
    tokens, ends = jax.jit(lambda *args: decode.generate(MODEL, *args, new_tokens=new, how=how))(
        PARAMS,
        jnp.asarray(padded),
        jnp.asarray(lengths),
        jax.random.key_data(jax.random.key(4)),
        jnp.asarray(rows, jnp.int32),
    )
    return [
        np.asarray(tokens[i, n:e]).tolist()
        for i, (n, e) in enumerate(zip(lengths, ends, strict=True))
    ]


def test_greedy_equals_the_full_pass_for_ragged_prompts() -> None:
    made = continued(PROMPTS, Sampling(temperature=0), [0, 1, 2])
    for prompt, tokens in zip(PROMPTS, made, strict=True):
        text = list(prompt)
        for token in tokens:
            logits = MODEL.apply({"params": PARAMS}, jnp.asarray([text]))
            assert token == int(jnp.argmax(logits[0, -1]))
            text.append(token)
        assert len(tokens) == 6


def test_a_row_does_not_depend_on_its_company() -> None:
    together = continued(PROMPTS, Sampling(), [0, 1, 2])
    alone = continued(PROMPTS[1:2], Sampling(), [1])
    assert together[1] == alone[0]
    assert continued(PROMPTS, Sampling(), [3, 4, 5]) != together


def test_stop_tokens_end_a_row() -> None:
    free = continued(PROMPTS, Sampling(temperature=0), [0, 1, 2])
    stop = free[0][2]
    made = continued(PROMPTS, Sampling(temperature=0, stop=(stop,)), [0, 1, 2])
    for row, whole in zip(made, free, strict=True):
        end = whole.index(stop) + 1 if stop in whole else len(whole)
        assert row == whole[:end]


def draws(how: Sampling, logits: np.ndarray, count: int = 4000) -> np.ndarray:
    keys = jax.random.split(jax.random.key(0), count)
    tokens = decode.sample(jnp.asarray(np.tile(logits, (count, 1)), jnp.float32), keys, how)
    return np.bincount(np.asarray(tokens), minlength=len(logits)) / count


def test_sampling_follows_the_distribution() -> None:
    logits = np.log([0.5, 0.25, 0.15, 0.1])
    np.testing.assert_allclose(draws(Sampling(), logits), [0.5, 0.25, 0.15, 0.1], atol=0.03)
    sharp = np.asarray([0.5, 0.25, 0.15, 0.1]) ** 2
    np.testing.assert_allclose(
        draws(Sampling(temperature=0.5), logits), sharp / sharp.sum(), atol=0.03
    )
    np.testing.assert_allclose(draws(Sampling(top_k=2), logits), [2 / 3, 1 / 3, 0, 0], atol=0.03)
    np.testing.assert_allclose(draws(Sampling(top_p=0.7), logits), [2 / 3, 1 / 3, 0, 0], atol=0.03)
    np.testing.assert_allclose(draws(Sampling(top_p=0.3), logits), [1, 0, 0, 0])
    np.testing.assert_allclose(draws(Sampling(temperature=0), logits), [1, 0, 0, 0])


@pytest.mark.parametrize(
    "options", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0}]
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Sampling(**options)
