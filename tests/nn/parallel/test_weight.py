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
