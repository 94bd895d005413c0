"""muP beside what it promises: copies of all units learn what they are copies of.

A wide model whose units are copies of a narrow one's computes what the narrow one computes. Under
muP it also learns what that learns, step by step and number by number: with every optimizer, decay,
epsilon and limit of the gradient's norm. Nothing else does that, and no part of the rule may be
wrong or missing.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import base
from launch.run import optimizer
from nn import parallel
from nn.layers.position import sinusoids
from nn.learning.parametrisation import compare
from tests import parallel_cases as cases
from tests.widths import abstract, first_values, narrow_of, network, wide_of, widened

EXPERTS = {
    "num_experts": 4,
    "num_kv_heads": 2,
    "tie_embeddings": False,
    "qk_norm": "head",
    "norm": "rms_one",
    "activation": "swiglu",
}


def options(name: str = "adamw", **values: Any) -> ConfigDict:
    found = base.get_config().optimizer
    # Large, so that a wrong factor would be seen.
    found.update(name=name, learning_rate=0.02, schedule="constant", eps=1e-3, clip_norm=0.05)
    found.update(weight_decay=0.5, **values)
    return found


def losses(
    name: str, config: Any, params: Any, chain: ConfigDict, rows: Any, steps: int = 3
) -> list[float]:
    """Of the first steps from some parameters."""
    family, objective = cases.family(name), cases.objective_of(name)
    batch = {k: jnp.asarray(x) for k, x in cases.batch_of(name, narrow_of(name)).items()}
    named = abstract(name, config)
    method, _ = optimizer.make(chain, steps, named, rows=rows)
    model, key = family.Model(config), jax.random.key(0)
    rest = jax.eval_shape(lambda: model.init(key, *family.example(config, 2)))
    statistics = {
        kind: jax.tree.map(lambda x: jnp.zeros(x.shape), parallel.unbox(tree))
        for kind, tree in rest.items()
        if kind not in ("params", "intermediates")
    }

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            variables = {"params": params, **statistics}
            sums, _ = objective.sums(objective.Config(), model, variables, batch, key, train=True)
            return sums["loss"][0] / sums["loss"][1]

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = method.update(gradients, state, params)
        return jax.tree.map(jnp.add, params, updates), state, value

    state, found = method.init(params), []
    for _ in range(steps):
        params, state, value = step(params, state)
        found.append(float(value))
    return found


def twins(name: str, narrow: Any, chain: ConfigDict) -> tuple[list[float], list[float]]:
    """Losses of a model and of one with two copies of every unit."""
    wide = wide_of(name, narrow)
    rows = compare("mup", abstract(name, wide), abstract(name, narrow))
    params = first_values(name, narrow)
    return (
        losses(name, narrow, params, chain, {}),
        losses(name, wide, widened(params, rows), chain, rows),
    )


QUICK = ("neural_lm", "transformer")
FAMILIES = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name in cases.family_names()
]


@pytest.mark.parametrize("name", FAMILIES)
def test_copies_of_all_units_learn_what_they_are_copies_of(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = narrow_of(name)
    if name == "whisper":  # whose positions are not learned, and hence not copied
        monkeypatch.setattr(
            "nn.families.whisper.model.sinusoids",
            lambda places, dim, **more: jnp.repeat(
                sinusoids(places, narrow.dim, **more), dim // narrow.dim, -1
            ),
        )
    before, after = twins(name, narrow, options())
    np.testing.assert_allclose(after, before, rtol=2e-4)
    assert abs(before[2] / before[0] - 1) > 0.01, "nothing was learned"


@pytest.mark.slow
def test_copies_of_experts_and_of_normed_heads_too() -> None:
    narrow = dataclasses.replace(narrow_of("transformer"), **EXPERTS)
    before, after = twins("transformer", narrow, options())
    np.testing.assert_allclose(after, before, rtol=2e-4)


def run_network(params: Any, chain: ConfigDict, named: Any, rows: Any) -> np.ndarray:
    """What it gives after some steps."""
    x = jnp.sin(jnp.arange(15.0)).reshape(5, 3)
    y = jnp.cos(jnp.arange(20.0)).reshape(5, 4)
    method, _ = optimizer.make(chain, 4, named, rows=rows)

    def apply(p: Any) -> jax.Array:
        h = jnp.tanh(x @ p["first"]["kernel"] + p["first"]["bias"][None])
        for i in range(2):
            h = h + jnp.tanh(h @ p["blocks"]["kernel"][i]) * p["blocks"]["scale"][i][None]
        return h @ p["output"]["kernel"]

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        gradients = jax.grad(lambda p: jnp.mean(jnp.square(apply(p) - y)))(params)
        updates, state = method.update(gradients, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    state = method.init(params)
    for _ in range(4):
        params, state = step(params, state)
    return np.asarray(apply(params))


METHODS: dict[str, dict[str, Any]] = {
    "sgd": {"learning_rate": 0.5},
    "momentum": {"clip_norm": 0.0},
    "nesterov": {"learning_rate": 0.1},
    "rmsprop": {"weight_decay": 0.0},
    "adam": {"weight_decay": 0.0, "clip_norm": 0.0},
    "adamw": {"eps": 0.1, "decay_mask": "all"},
    "lion": {},
    "muon": {},
}


@pytest.mark.parametrize("name", METHODS)
def test_every_optimizer_treats_copies_alike(name: str) -> None:
    narrow, wide = network((3, 6, 4)), network((3, 18, 4))
    rows, params = compare("mup", wide, narrow), parallel.unbox(narrow)
    chain = options(name)
    chain.update(METHODS[name])
    before = run_network(params, chain, narrow, {})
    after = run_network(widened(params, rows), chain, wide, rows)
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-4)
    unlike = run_network(widened(params, rows), chain, wide, {})
    assert np.abs(unlike - before).max() > 0.01


def test_those_without_a_rule_are_known() -> None:
    without = {name for name, method in optimizer.METHODS.items() if method.scales is None}
    assert without == {"adafactor", "lamb"}
    assert {*METHODS, *without} == set(optimizer.NAMES)
