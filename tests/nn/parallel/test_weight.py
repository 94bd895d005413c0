"""Weights travel in the dtype of the activations, their gradients are summed in float32."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from nn import parallel
from nn.parallel.weight import Weight
from tests import collectives_of
from tests import parallel_cases as cases

FAMILY = cases.family("transformer")
CONFIG = dataclasses.replace(FAMILY.tiny(), remat="block")


def rule_of(sizes: dict[str, int], dtype: Any, reduce: str) -> Any:
    rules = parallel.Rules(reduce_dtype=reduce)
    rule = cases.make_rule("transformer", CONFIG, sizes, rules)
    task = dataclasses.replace(rule.task, model=FAMILY.Model(CONFIG, dtype=dtype))
    return dataclasses.replace(rule, task=task)


def gradient_of(width: int, dtype: Any, reduce: str) -> np.ndarray:
    """Of sum(x W c) with respect to W over fsdp=8; x and c are exact in bfloat16."""
    mesh = parallel.make_mesh({"fsdp": 8}, jax.devices())
    random = np.random.default_rng(0)
    x = jnp.asarray(random.integers(1, 100, (8, width)), dtype)
    c = jnp.asarray(random.integers(1, 3, (1, 5)), dtype)

    def local(w: jax.Array, x: jax.Array) -> jax.Array:
        def loss(w: jax.Array) -> jax.Array:
            return jnp.sum((x @ Weight(w, ("fsdp", None)).whole(like=x)) * c)

        return jax.grad(loss)(w)

    rules = parallel.Rules(reduce_dtype=reduce)
    run = parallel.spmd(local, mesh, rules, (P("fsdp"), P("fsdp")), P("fsdp"))
    return np.asarray(jax.jit(run)(jnp.zeros((width, 5)), x))


def test_the_sum_over_the_mesh_is_that_of_float32() -> None:
    exact = gradient_of(16, jnp.float32, "float32")
    np.testing.assert_array_equal(gradient_of(16, jnp.bfloat16, "float32"), exact)
    np.testing.assert_array_equal(gradient_of(16, jnp.float32, "bfloat16"), exact)
    rough = gradient_of(16, jnp.bfloat16, "bfloat16")
    assert 1e-4 < np.abs(rough - exact).max() / exact.max() < 2e-2


def test_a_loop_adds_the_gradient_of_a_gathered_weight_up_in_float32() -> None:
    """512 times 1, which in bfloat16 ends at 256."""
    mesh = parallel.make_mesh({"fsdp": 8}, jax.devices())

    def local(w: jax.Array, x: jax.Array) -> jax.Array:
        def loss(w: jax.Array) -> jax.Array:
            held = Weight(w, ("fsdp", None)).gathered(like=x)
            return jnp.sum(jax.lax.map(lambda row: jnp.sum(row @ held.whole(like=row)), x))

        return jax.grad(loss)(w)

    run = parallel.spmd(local, mesh, parallel.Rules(), (P("fsdp"), P("fsdp")), P("fsdp"))
    x = jnp.ones((8 * 512, 8), jnp.bfloat16)
    np.testing.assert_array_equal(jax.jit(run)(jnp.zeros((8, 3)), x), 8 * 512.0)


@pytest.mark.parametrize(
    ("sizes", "schedule", "accumulate"),
    [
        ({"data": 2}, "gpipe", 2),
        ({"pipe": 2, "data": 2}, "gpipe", 1),
        ({"pipe": 2, "data": 2}, "1f1b", 1),
    ],
)
def test_parameters_of_low_precision_are_summed_in_float32(
    sizes: dict[str, int], schedule: str, accumulate: int
) -> None:
    """Over the mesh and in the loops over microbatches, as where there is no such loop."""
    rules = parallel.Rules(schedule=schedule, microbatches=2)
    rule = cases.make_rule("transformer", CONFIG, sizes, rules, accumulate=accumulate)
    model = FAMILY.Model(CONFIG, dtype=jnp.bfloat16)
    rule = dataclasses.replace(
        rule, task=dataclasses.replace(rule.task, model=model, param_dtype=jnp.bfloat16)
    )
    state = jax.eval_shape(lambda: rule.init(0))
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.bfloat16)}
    found = collectives_of.in_jaxpr(rule.gradients, state, cases.batch_of("transformer", CONFIG))
    summed = [c for c in found if c.kind == "all-reduce" and "data" in c.axes]
    assert len(summed) >= len(jax.tree.leaves(state.params))
    assert {c.dtype for c in summed} == {"float32"}


@pytest.mark.slow
def test_a_float32_reduction_is_nearer_to_float32_gradients() -> None:
    errors = {}
    for dtype, reduce in (("float32", "float32"), ("bfloat16", "float32"), ("bfloat16",) * 2):
        rule = rule_of({"fsdp": 8}, jnp.dtype(dtype), reduce)
        state = cases.initial_state(rule, 0)
        batch = cases.to_mesh(rule, cases.batch_of("transformer", CONFIG))
        found = jax.device_get(jax.jit(rule.gradients)(state, batch)[0])
        flat = np.concatenate([x.ravel() for x in jax.tree.leaves(found)])
        reference = errors.setdefault("exact", flat)
        errors[dtype, reduce] = np.linalg.norm(flat - reference) / np.linalg.norm(reference)
    assert errors["float32", "float32"] == 0
    assert 0 < errors["bfloat16", "float32"] < errors["bfloat16", "bfloat16"] < 0.02


@pytest.mark.parametrize("sizes", [{"fsdp": 8}, {"data": 2, "fsdp": 4}])
@pytest.mark.parametrize(
    ("dtype", "reduce"),
    [("float32", "bfloat16"), ("bfloat16", "float32"), ("bfloat16", "bfloat16")],
)
def test_what_goes_over_the_mesh(sizes: dict[str, int], dtype: str, reduce: str) -> None:
    rule = rule_of(sizes, jnp.dtype(dtype), reduce)
    state = jax.eval_shape(lambda: rule.init(0))
    found = collectives_of.in_jaxpr(rule.gradients, state, cases.batch_of("transformer", CONFIG))
    moved: dict[tuple[str, ...], set[str]] = collections.defaultdict(set)
    shares = collections.Counter(c.axes for c in found if c.kind == "all-reduce" and c.bytes > 4)
    for c in found:
        moved[(c.kind, *c.axes)].add(c.dtype)
    summed = "float32" if dtype == "float32" else reduce
    assert moved["all-gather", "fsdp"] == {dtype}
    assert moved["reduce-scatter", "fsdp"] == {summed}
    if "data" in sizes:
        # The share of each gathered weight, after its reduce-scatter, and nothing more.
        gathered = sum(c.kind == "reduce-scatter" for c in found)
        assert moved["all-reduce", "data"] == {summed}
        assert shares["data",] == gathered
