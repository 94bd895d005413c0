"""Experts on any mesh: loss, gradients and statistics equal one device's.

A choice among experts is not continuous: where two scores are closer than the rounding of float32,
another order of a sum may turn it. So initial weights are large here, which spreads the scores, and
a test sees to it that the closest of them are 100 times further apart than that rounding.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn import parallel
from nn.layers import grouped, moe
from nn.parallel import expert as experts
from tests import parallel_cases as cases

P = jax.sharding.PartitionSpec
TOLERANCE = 1e-5
MIXTRAL = dataclasses.replace(
    cases.family("transformer").tiny(),
    num_heads=4,
    num_kv_heads=2,
    norm="rms",
    position="rotary",
    activation="swiglu",
    bias=False,
    init_std=0.2,
    remat="block",
    num_experts=8,
    expert_dim=24,
    router_balance_loss=0.05,
    router_z_loss=0.01,
)
DEEPSEEK = dataclasses.replace(
    MIXTRAL,
    activation="gelu_tanh",
    shared_experts=1,
    shared_gate=True,
    experts_per_token=3,
    router_scores="sigmoid",
    router_groups=4,
    router_top_groups=2,
    router_group_score="top2",
    router_bias_rate=0.01,
    router_jitter=0.1,
    router_scale=2.5,
)
CONFIGS = {"mixtral": MIXTRAL, "deepseek": DEEPSEEK}
CASES = [
    ("mixtral", "expert8", "gather", 1),
    ("mixtral", "expert4 x data2", "all_to_all", 2),
    ("mixtral", "expert2 x tensor2 x fsdp2", "ragged", 1),
    ("mixtral", "expert2 x fsdp2 x data2", "gather", 2),
    ("deepseek", "expert8", "ragged", 1),
    ("deepseek", "expert2 x tensor2 x fsdp2", "all_to_all", 2),
    ("deepseek", "tensor2 x data4", "auto", 1),
]


MARGINS: dict[str, list[float]] = {name: [] for name in CONFIGS}


@functools.cache
def one_device(name: str, parts: int) -> cases.Result:
    """The reference; on the way it notes how far choices are from turning."""

    def gap(scores: jax.Array, k: int) -> jax.Array:
        """Least difference between the last that is chosen and the first that is not."""
        best = jax.lax.top_k(scores, k + 1)[0]
        return jnp.min(best[..., k - 1] - best[..., k])

    def watched(r: Any, logits: jax.Array, bias: Any = None) -> Any:
        scores = jax.nn.sigmoid(logits) if r.scores == "sigmoid" else jax.nn.softmax(logits)
        margin = jnp.asarray(jnp.inf)
        if r.groups > 1:
            pairs = jax.lax.top_k(scores.reshape(*scores.shape[:2], r.groups, -1), 2)[0]
            margin, scores = gap(pairs.sum(axis=-1), r.top_groups), moe._best_groups(r, scores)
        margin = jnp.minimum(margin, gap(scores, r.top_k))
        jax.debug.callback(lambda m: MARGINS[name].append(float(m)), margin)
        return route(r, logits, bias)

    route = moe.route
    rules = parallel.Rules(sequence_parallel=True, microbatches=parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moe, "route", watched)
        return cases.measure("transformer", CONFIGS[name], {}, rules)


@pytest.mark.parametrize("name, mesh, dispatch, parts", CASES)
def test_mesh_equals_one_device(name: str, mesh: str, dispatch: str, parts: int) -> None:
    reference = one_device(name, parts)
    rules = parallel.Rules(sequence_parallel=True, microbatches=parts, dispatch=dispatch)
    result = cases.measure("transformer", CONFIGS[name], cases.sizes_of(mesh), rules)
    cases.assert_same(result, reference)
    assert bool(result.variables) == (name == "deepseek")


def test_microbatches_change_the_balance_loss() -> None:
    """Guards the above against parts that are ignored."""
    one, two = one_device("mixtral", 1), one_device("mixtral", 2)
    assert abs(one.loss - two.loss) > 1e-4


@pytest.mark.parametrize("name", CONFIGS)
def test_no_choice_hangs_by_a_hair(name: str) -> None:
    one_device(name, 1)
    assert min(MARGINS[name]) > 1e-5, "choose other seeds or sizes"


@pytest.mark.slow
def test_evaluation_is_without_auxiliary_losses() -> None:
    def losses(config: Any) -> tuple[float, float]:
        rule = cases.make_rule("transformer", config, {}, parallel.Rules())
        state, batch = rule.init(0), cases.batch_of("transformer", config)
        _, trained, _ = jax.jit(rule.gradients)(state, batch)
        measured = jax.jit(rule.evaluate)(state, batch)
        assert {"load_balance", "router_z", "busiest", "dropped"} <= measured.keys()
        return tuple(float(s["loss"][0] / s["loss"][1]) for s in (trained, measured))

    trained, measured = losses(MIXTRAL)
    plain = losses(dataclasses.replace(MIXTRAL, router_balance_loss=0.0, router_z_loss=0.0))
    assert trained > measured + 0.1
    np.testing.assert_allclose([measured, plain[0]], plain[1], rtol=1e-6)


@pytest.mark.slow
def test_accumulation_takes_the_bias_along() -> None:
    """One update of the bias per part, and the same on a mesh."""
    config = dataclasses.replace(DEEPSEEK, router_jitter=0.0)
    rules = parallel.Rules(sequence_parallel=True)
    one = cases.measure("transformer", config, {}, rules, accumulate=2)
    mesh = cases.measure("transformer", config, {"expert": 2, "data": 2}, rules, accumulate=2)
    cases.assert_same(mesh, one)
    bias = one.variables["statistics"]["blocks"]["moe"]["bias"]
    assert bias.shape == (config.num_layers, 8)
    assert {round(abs(float(x)), 4) for x in bias.flat} <= {0.0, 0.01, 0.02}
    assert np.abs(bias).max() > 0.015


def dispatcher(way: str, mesh: Any, limit: int) -> Any:
    """(weights, x, choice, weight) -> y and the gradients of sum(sin(y)) in weights and x."""
    rules = parallel.Rules(dispatch=way)
    spec, rows = P("expert"), P(("data", "expert"))

    def local(weights: Any, x: Any, choice: Any, weight: Any) -> Any:
        def loss(weights: Any, x: Any) -> Any:
            up, down = weights
            compute = functools.partial(grouped.feed_forward, jnp.tanh, [up], down)
            y = experts.dispatch(compute, x, choice, weight, 8, limit)
            return jnp.sum(jnp.sin(y)), y

        gradients, y = jax.grad(loss, argnums=(0, 1), has_aux=True)(weights, x)
        return y, gradients

    in_specs = ((spec, spec), rows, rows, rows)
    run = parallel.spmd(local, mesh, rules, in_specs, (rows, ((spec, spec), rows)))
    return jax.jit(run)


@pytest.mark.parametrize("limit", [32, 3])
@pytest.mark.parametrize("way", ["gather", "all_to_all", "ragged"])
def test_every_dispatch_gives_the_same(way: str, limit: int) -> None:
    """limit 3: some choices are none (8), as with a capacity; expert 6 is never chosen."""
    keys = jax.random.split(jax.random.key(0), 5)
    weights = (
        jax.random.normal(keys[0], (8, 10, 6)) / 3,
        jax.random.normal(keys[1], (8, 6, 10)) / 3,
    )
    x, weight = jax.random.normal(keys[2], (32, 10)), jax.random.uniform(keys[3], (32, 2))
    scores = jax.random.normal(keys[4], (32, 8)).at[:, 6].set(-9.0).at[:, 1].add(1.0)
    choice = jax.lax.top_k(scores, 2)[1]
    if limit < 32:  # as each of the 8 shards, of 4 tokens, would have it
        fits = jax.vmap(lambda c: experts.ranks(c, 8)[0])(choice.reshape(8, 4, 2)) < limit
        choice = jnp.where(fits.reshape(32, 2), choice, 8)
        assert 0 < int((choice == 8).sum()) < 16
    reference = dispatcher("gather", None, 32)(weights, x, choice, weight)
    mesh = parallel.make_mesh({"expert": 4, "data": 2}, jax.devices())
    result = dispatcher(way, mesh, min(limit, 4))(weights, x, choice, weight)
    for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(reference), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(np.abs(b).max()))
    assert not np.asarray(result[1][0][0])[6].any()


def test_accelerators_send_ragged_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a TPU gets, lowered without one: there, back, and both once more backwards."""
    monkeypatch.setattr(experts, "platform", lambda: "tpu")
    monkeypatch.setattr(grouped, "platform", lambda: "tpu")
    mesh = parallel.make_mesh({"expert": 4, "data": 2}, jax.devices())
    shapes = ((8, 10, 6), (8, 6, 10)), (32, 10), (32, 2), (32, 2)
    kinds = (jnp.float32, jnp.float32), jnp.float32, jnp.int32, jnp.float32
    arguments = jax.tree.map(lambda kind, shape: jax.ShapeDtypeStruct(shape, kind), kinds, shapes)
    traced = dispatcher("auto", mesh, 4).trace(*arguments)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("@ragged_all_to_all") == 4
    assert text.count('"stablehlo.all_gather"') == 1  # of how many rows each one sends


def test_experts_that_do_not_divide_are_refused() -> None:
    config = dataclasses.replace(MIXTRAL, num_experts=6)
    rule = cases.make_rule("transformer", config, {"expert": 4}, parallel.Rules())
    words = "dimension 'expert' of size 6 is not divisible by mesh.expert=4; nearest size .*: 2"
    with pytest.raises(ValueError, match=words):
        rule.task.variable_specs()


def test_experts_over_another_axis_are_refused() -> None:
    with pytest.raises(ValueError, match="expert=tensor: .* over expert only; nearest: exp"):
        parallel.parse_rules("expert=tensor,mlp=", True)
