"""What is particular to the neural language model: its window, its arithmetic, its cache."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn import parallel
from nn.analysis import flops
from nn.families import neural_lm
from nn.families.neural_lm import Config, Model
from nn.objectives import next_token
from tests import parallel_cases as cases

TINY = neural_lm.tiny()
(TOKENS,) = neural_lm.example(TINY, 3)


def initial(config: Config) -> Any:
    params = parallel.unbox(jax.jit(Model(config).init)(jax.random.key(0), TOKENS))["params"]
    # Biases begin at 0, where no test would miss them.
    return jax.tree.map(lambda x: x + 0.1 if x.ndim == 1 else x, params)


def test_it_is_the_equation_of_the_paper() -> None:
    config = dataclasses.replace(TINY, num_layers=1)
    params = jax.device_get(initial(config))
    logits = Model(config).apply({"params": params}, TOKENS)
    table, hidden, output = params["embed"], params["layers_0"], params["output"]
    row = np.asarray(TOKENS[1])
    for t in (0, 2, 9):
        before = [np.zeros(config.embed_dim)] * max(config.window - 1 - t, 0)
        seen = row[max(t - config.window + 1, 0) : t + 1]
        x = np.concatenate([*before, *table["embedding"][seen]])
        h = np.tanh(hidden["bias"] + x @ hidden["kernel"])
        expected = params["head_bias"] + h @ output["kernel"]
        np.testing.assert_allclose(logits[1, t], expected, rtol=1e-4, atol=1e-5)


def test_it_sees_the_window_and_its_own_document_only() -> None:
    params = {"params": initial(TINY)}
    segments = jnp.where(jnp.arange(TOKENS.shape[1]) < 9, 1, 2)[None] + 0 * TOKENS

    def seen(**inputs: Any) -> np.ndarray:
        """(S, T): whether the token at s changes the logits at t."""
        apply = jax.jit(lambda tokens: Model(TINY).apply(params, tokens, **inputs))
        before = apply(TOKENS)
        other = [TOKENS.at[:, s].add(1) for s in range(TOKENS.shape[1])]
        return np.asarray([(apply(x) != before).any(axis=(0, 2)) for x in other])

    s, t = np.indices((TOKENS.shape[1],) * 2)
    near = (s <= t) & (t < s + TINY.window)
    np.testing.assert_array_equal(seen(), near)
    same = (s < 9) == (t < 9)
    np.testing.assert_array_equal(seen(segments_BT=segments), near & same)


def test_a_step_costs_six_operations_per_token_and_weight_of_a_matrix() -> None:
    batch = {
        name: jnp.zeros(TOKENS.shape, kind)
        for name, kind in (("inputs", int), ("targets", int), ("segments", int), ("mask", float))
    }

    def loss(params: Any) -> jax.Array:
        key, options = jax.random.key(0), next_token.Config()
        variables = {"params": params}
        sums, _ = next_token.sums(options, Model(TINY), variables, batch, key, train=True)
        return sums["loss"][0]

    params = initial(TINY)
    matrices = sum(
        x.size
        for path, x in jax.tree_util.tree_leaves_with_path(params)
        if jax.tree_util.keystr(path).endswith("kernel']")
    )
    assert matrices == 5 * 8 * 32 + 2 * 32 * 32 + 32 * 64
    assert flops.train_step_flops(loss, params).model.total == 6 * matrices * TOKENS.size


@functools.cache
def one_device() -> cases.Result:
    return cases.measure("neural_lm", TINY, {})


@pytest.mark.parametrize("attention", ["ring", "ulysses"])
def test_shards_of_the_positions_see_the_tokens_before_theirs(attention: str) -> None:
    rules = parallel.Rules(sequence_parallel=True, attention=attention)
    sizes = {"fsdp": 2, "context": 2, "tensor": 2}
    cases.assert_same(cases.measure("neural_lm", TINY, sizes, rules), one_device())


def test_cached_decoding_equals_the_full_pass() -> None:
    model, params = Model(TINY), {"params": initial(TINY)}
    full = model.apply(params, TOKENS)
    cache = model.empty_cache(*TOKENS.shape)
    for first, last in ((0, 7), (7, 8), (8, 9), (9, 16)):
        positions = jnp.arange(first, last)[None] + jnp.zeros_like(TOKENS[:, first:last])
        given: Any = (params, TOKENS[:, first:last], positions)
        states, cache, _ = model.apply(*given, cache=cache, method="hidden")
        logits = model.apply(params, states, method="head")
        np.testing.assert_allclose(logits, full[:, first:last], rtol=1e-4, atol=1e-5)


def test_what_cannot_be_is_refused() -> None:
    for wrong, message in (
        ({"window": 0}, "model.window=0"),
        ({"dropout": 1.0}, "model.dropout=1.0"),
        ({"activation": "swiglu"}, "is gated"),
    ):
        with pytest.raises(ValueError, match=message):
            Config(**wrong)  # type: ignore[arg-type]
