"""Frozen parameters and low-rank factors: what moves, what does not, and the same on every mesh."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from launch.run import config as configs
from launch.run.build import build
from launch.run.optimizer import NAMES
from launch.run.state import initial_state
from launch.run.step import to_mesh
from nn import parallel
from nn.analysis import collectives
from nn.learning import backprop, tune
from tests import parallel_cases as cases

GPT = cases.family("transformer").tiny()  # a tied head, biases, one product for q, k and v
LLAMA = dataclasses.replace(cases.llama(GPT), num_layers=2)
EXPERTS = dataclasses.replace(LLAMA, num_experts=4, expert_dim=16)
ALL = tune.Tune(lora_rank=3, lora_alpha=6.0, lora_targets=".*kernel")
LORA = tune.Tune(lora_rank=3, lora_alpha=6.0)


def make(
    config: Any, how: tune.Tune, mesh: dict[str, int] | None = None, **rules: Any
) -> backprop.Rule:
    options = parallel.Rules(sequence_parallel=True, **rules)
    rule = cases.make_rule("transformer", config, mesh or {}, options, optax.adam(1e-2))
    return dataclasses.replace(rule, task=dataclasses.replace(rule.task, tune=how))


def filled(params: Any) -> Any:
    """The parameters with numbers in place of the zeros of B."""

    def fill(path: Any, x: Any) -> Any:
        if not jax.tree_util.keystr(path).endswith("lora_b']"):
            return x
        return 0.02 * jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)

    return jax.tree_util.tree_map_with_path(fill, params)


@functools.cache
def forward(config: Any) -> Any:
    return jax.jit(cases.family("transformer").Model(config).apply)


def logits(config: Any, params: Any) -> jax.Array:
    tokens = jnp.asarray(cases.batch_of("transformer", config)["inputs"][:2])
    out: jax.Array = forward(config)({"params": params}, tokens)
    return out


def equal(a: Any, b: Any) -> dict[str, bool]:
    """path -> whether the leaves are the same bits."""
    flat = [flatten_dict(tree, sep="/") for tree in (a, b)]
    return {path: bool(np.array_equal(flat[0][path], flat[1][path])) for path in flat[0]}


@pytest.mark.parametrize("config", [GPT, EXPERTS], ids=["gpt", "experts"])
def test_factors_start_at_the_base_and_merge_into_it(config: Any) -> None:
    base, params = (initial_state(make(config, how), 0).params for how in (tune.Tune(), ALL))
    own = {path: x for path, x in flatten_dict(params, sep="/").items() if "_lora_" not in path}
    assert all(equal(base, unflatten_dict(own, sep="/")).values())
    assert np.array_equal(logits(config, params), logits(config, base))

    moved = filled(params)
    merged = tune.merge(moved)
    assert jax.tree.structure(merged) == jax.tree.structure(base)
    want = logits(config, moved)
    assert float(jnp.abs(want - logits(config, base)).max()) > 0.01
    np.testing.assert_allclose(logits(config, merged), want, atol=2e-5)


def test_the_product_is_the_papers() -> None:
    """h = W x + (alpha / r) B A x, for a weight of two inputs and one of two outputs."""
    rng = np.random.default_rng(0)
    for shape, cut in (((4, 2, 3), 1), ((2, 3, 4), 2)):
        a, b = rng.normal(size=(*shape[:cut], 5)), rng.normal(size=(5, *shape[cut:]))
        w = rng.normal(size=shape)
        tree = {"kernel": w, "kernel_lora_a": a, "kernel_lora_b": b, "kernel_lora_scale": 0.5}
        merged = tune.merge({"x": jax.tree.map(jnp.asarray, tree)})["x"]
        inputs = math.prod(shape[:cut])
        want = w.reshape(inputs, -1) + 0.5 * a.reshape(inputs, 5) @ b.reshape(5, -1)
        np.testing.assert_allclose(merged["kernel"].reshape(inputs, -1), want, rtol=1e-5)
        assert list(merged) == ["kernel"]


@pytest.mark.parametrize(
    ("how", "moves"),
    [
        (LORA, r"blocks/.*_lora_[ab]"),
        (tune.Tune(freeze="blocks/.*"), r"(embed|positions|final_norm)/.*"),
        (tune.Tune(train=".*_norm/.*,.*bias", freeze="final.*"), r"blocks/(.*_norm/.*|.*bias)"),
    ],
    ids=["lora", "freeze", "train"],
)
def test_only_what_is_trained_moves_and_has_state(how: tune.Tune, moves: str) -> None:
    rule = make(GPT, how)
    rule = dataclasses.replace(rule, config=backprop.Config(ema_decay=0.5, accumulate=2))
    state, batch = initial_state(rule, 0), cases.batch_of("transformer", GPT)
    old, update, found = state, jax.jit(rule.update), []
    for _ in range(4):
        state, metrics = update(state, batch)
        found.append(float(metrics["loss"]))
    assert found[-1] < found[0], found
    flat = flatten_dict(state.params, sep="/")
    trained = {path for path in flat if re.fullmatch(moves, path)}
    assert {path for path, kept in equal(old.params, state.params).items() if not kept} == trained
    size = sum(flat[path].size for path in trained)
    assert sum(x.size for x in jax.tree.leaves(state.opt_state)) == 2 * size + 1
    assert flatten_dict(state.average, sep="/").keys() == trained
    averaged = flatten_dict(rule.weights(state), sep="/")
    assert averaged.keys() == flat.keys()
    assert all(averaged[path] is flat[path] for path in flat.keys() - trained)


@functools.cache
def gradients(mesh: tuple[tuple[str, int], ...], **rules: Any) -> tuple[Any, float, Any]:
    """(gradients, loss, program) of a step by the factors, none of them zero."""
    rule = make(LLAMA, ALL, dict(mesh), **rules)
    state = initial_state(rule, 0)
    places = jax.tree.map(lambda x: x.sharding, state.params)
    params = jax.device_put(filled(jax.device_get(state.params)), places)
    batch = to_mesh(rule, cases.batch_of("transformer", LLAMA))
    traced = jax.jit(rule.gradients).trace(state.replace(params=params), batch)
    found, sums, _ = traced.lower().compile()(state.replace(params=params), batch)
    return jax.device_get(found), float(sums["loss"][0] / sums["loss"][1]), traced.jaxpr.jaxpr


FSDP = {"fsdp": 2, "tensor": 2, "data": 2}
PIPE = {"pipe": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize(
    ("mesh", "rules"),
    [
        pytest.param(FSDP, {}, id="fsdp tensor data"),
        pytest.param(PIPE, {"microbatches": 2, "schedule": "1f1b"}, id="pipe 1f1b"),
        pytest.param(PIPE, {"microbatches": 2}, id="pipe gpipe", marks=pytest.mark.slow),
    ],
)
def test_gradients_on_a_mesh_are_those_of_one_device(
    mesh: dict[str, int], rules: dict[str, Any]
) -> None:
    want, loss, _ = gradients(())
    got, found, _ = gradients(tuple(mesh.items()), **rules)
    assert min(np.abs(x).max() for x in jax.tree.leaves(want)) > 0
    assert set(jax.tree.leaves(jax.tree.map(lambda a, b: a.shape == b.shape, got, want))) == {True}
    assert found == pytest.approx(loss, rel=1e-5)
    error, where = cases.worst(got, want)
    assert error < 1e-5, where


def test_what_is_frozen_has_no_sums_over_the_mesh() -> None:
    """One sum per factor and layer, and those of the metrics; the weights themselves have none."""

    def sums(how: tune.Tune) -> int:
        rule = make(GPT, how, {"data": 8})
        state = jax.eval_shape(functools.partial(rule.init, 0))
        batch = cases.batch_of("transformer", GPT)
        counted = collectives.count_jaxpr(jax.make_jaxpr(rule.gradients)(state, batch).jaxpr)
        return sum(n for name, n in counted.items() if name.startswith("all-reduce"))

    rule = make(GPT, LORA)
    trained, _ = LORA.split(jax.eval_shape(lambda: rule.init(0)).params)
    bare = sums(tune.Tune(train="final_norm/scale")) - 1
    assert sums(LORA) == bare + GPT.num_layers * len(jax.tree.leaves(trained))
    assert sums(tune.Tune(train=".*")) == sums(tune.Tune())


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_sees_what_is_trained(name: str) -> None:
    overrides = [f"optimizer.name={name}", "model.num_layers=2", "tune.train=.*_kernel,.*norm/.*"]
    run = build(configs.load("experiments/bytes_gpt.py", overrides), jax.devices()[:1])
    state = jax.eval_shape(lambda: run.rule.init(0))
    trained, frozen = run.rule.task.tune.split(state.params)
    assert jax.tree.leaves(trained) and jax.tree.leaves(frozen)
    specs = run.rule.state_specs()
    assert jax.tree.structure(specs.opt_state) == jax.tree.structure(state.opt_state)
    new = jax.eval_shape(run.rule.apply, state, trained, {"loss": (1.0, 1.0)}, {})[0]
    assert jax.tree.structure(new) == jax.tree.structure(state)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"train": "blocks/atention/.*"}, "matches no parameter; nearest: 'blocks/attention/.*'"),
        ({"train": "blocks/atten"}, "nearest: 'blocks/attention/.*'"),
        (
            {"freeze": "embed/.*,final_norm"},
            "'final_norm' matches no parameter; nearest: 'final_norm/.*'",
        ),
        ({"freeze": ".*"}, "leave nothing to train"),
        ({"train": "blocks/("}, "is no regular expression"),
        (
            {"lora_rank": 2, "lora_targets": "blocks/mlp/up/kernl"},
            "nearest: 'blocks/mlp/up/kernel'",
        ),
        ({"lora_rank": 2, "lora_targets": ".*/kernel,.*scale"}, "is no dense weight"),
        ({"lora_rank": 2, "lora_targets": "embed/embedding"}, "is no dense weight"),
        ({"lora_targets": ".*kernel"}, "needs tune.lora_rank"),
        ({"lora_rank": -1}, "must be at least 0"),
    ],
)
def test_a_pattern_that_fits_nothing_is_refused(how: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        jax.eval_shape(lambda: make(GPT, tune.Tune(**how)).init(0))
