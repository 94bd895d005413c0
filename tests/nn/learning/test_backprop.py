"""The update around the gradient: averages, skipped steps, loss scale, rounding."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nn import parallel
from nn.learning import backprop
from nn.optim.rounding import apply_updates_stochastically, round_stochastically
from tests import parallel_cases as cases

CONFIG = cases.family("mlp").tiny()
BATCH = cases.batch_of("mlp", CONFIG)


def make(task: dict[str, Any] | None = None, **options: Any) -> backprop.Rule:
    rule = cases.make_rule("mlp", CONFIG, {}, parallel.Rules(), **options)
    return dataclasses.replace(rule, task=dataclasses.replace(rule.task, **(task or {})))


def poisoned() -> dict[str, np.ndarray]:
    return {**BATCH, "inputs": np.full_like(BATCH["inputs"], np.nan)}


def test_a_step_lowers_the_loss_and_counts() -> None:
    rule = make()
    state, update = rule.init(0), jax.jit(rule.update)
    first = None
    for _ in range(5):
        state, metrics = update(state, BATCH)
        first = first or float(metrics["loss"])
    assert int(state.step) == 5
    assert float(metrics["loss"]) < first
    assert float(metrics["grad_norm"]) > 0


def test_the_running_average_follows_the_parameters() -> None:
    rule = make(ema_decay=0.9)
    state = rule.init(0)
    before = jax.tree.map(np.asarray, state.params)
    state, _ = jax.jit(rule.update)(state, BATCH)
    expected = jax.tree.map(lambda a, p: 0.9 * a + 0.1 * p, before, state.params)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(state.average), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert rule.weights(state) is state.average


def test_a_step_that_is_not_finite_changes_nothing_but_the_counters() -> None:
    rule = make()
    old = rule.init(0)
    new, metrics = jax.jit(rule.update)(old, poisoned())
    for a, b in zip(jax.tree.leaves(old.params), jax.tree.leaves(new.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (int(new.step), int(new.skipped), float(metrics["skipped"])) == (1, 1, 1.0)
    again, _ = jax.jit(rule.update)(new, BATCH)
    assert int(again.skipped) == 0


def test_without_skipping_the_damage_is_done() -> None:
    new, _ = jax.jit(make(skip_nonfinite=False).update)(make().init(0), poisoned())
    assert not all(np.isfinite(x).all() for x in jax.tree.leaves(new.params))


def test_the_loss_scale_halves_and_doubles_and_leaves_the_gradient() -> None:
    rule = make(task={"loss_scale": 1024.0}, scale_period=2)
    state, update = rule.init(0), jax.jit(rule.update)
    plain = jax.jit(make().gradients)(make().init(0), BATCH)[0]
    scaled = jax.jit(rule.gradients)(state, BATCH)[0]
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(scaled), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8)
    state, _ = update(state, poisoned())
    assert float(state.scale) == 512.0
    for expected in (512.0, 1024.0, 1024.0, 2048.0):
        state, _ = update(state, BATCH)
        assert float(state.scale) == expected


@pytest.mark.parametrize("field", [{"accumulate": 0}, {"ema_decay": 1.0}, {"max_skipped": 0}])
def test_bad_options_are_refused(field: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        backprop.Config(**field)


def test_an_uneven_accumulation_is_refused() -> None:
    rule = make(accumulate=5)
    with pytest.raises(ValueError, match="accumulate=5 does not divide the 16 .* multiple: 15"):
        rule.update(rule.init(0), BATCH)


def test_statistics_go_through_the_microbatches() -> None:
    config = dataclasses.replace(CONFIG, norm="batch")
    rule = cases.make_rule("mlp", config, {}, parallel.Rules(), accumulate=4)
    state = rule.init(0)
    new, _ = jax.jit(rule.update)(state, BATCH)
    mean = new.variables["batch_stats"]["norm_0"]["mean"]
    assert float(jnp.abs(mean).max()) > 0


def test_stochastic_rounding_is_right_on_average() -> None:
    x = jnp.full((200_000,), 1.0 + 0.3 * 2.0**-7)  # 0.3 of the way to the next bfloat16
    rounded = round_stochastically(x, jax.random.key(0)).astype(jnp.float32)
    assert set(np.unique(rounded)) == {1.0, 1.0 + 2.0**-7}
    assert float((rounded > 1).mean()) == pytest.approx(0.3, abs=0.005)
    negative = round_stochastically(-x, jax.random.key(1)).astype(jnp.float32)
    assert float(negative.mean()) == pytest.approx(float(-x[0]), abs=1e-4)
    special = jnp.asarray([jnp.inf, -jnp.inf, jnp.nan, 0.0])
    kept = round_stochastically(special, jax.random.key(2)).astype(jnp.float32)
    np.testing.assert_array_equal(kept, special)


def test_small_updates_survive_stochastic_rounding_only() -> None:
    params = {"w": jnp.ones((4096,), jnp.bfloat16)}
    updates = {"w": jnp.full((4096,), 1e-4, jnp.bfloat16)}
    nearest, stochastic = params, params
    for i in range(50):
        nearest = optax.apply_updates(nearest, updates)
        stochastic = apply_updates_stochastically(stochastic, updates, jax.random.key(i))
    assert float(nearest["w"].astype(jnp.float32).mean()) == 1.0
    mean = float(stochastic["w"].astype(jnp.float32).mean())
    assert mean == pytest.approx(1.005, abs=5e-4)
