"""The model of memory and time on programs small enough to count by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from nn import parallel
from nn.analysis import flops, liveness, plan, program
from nn.analysis.plan import Links, Machine
from tests import parallel_cases

KIB = 1024  # bytes of a (16, 16) float32 matrix
SQUARE = jax.ShapeDtypeStruct((16, 16), jnp.float32)
MESH = {"data": 4, "fsdp": 4, "tensor": 8}
TORUS = Links(sides=(4, 4, 8), inside=1e3, domain=128, outside=10.0)
SWITCH = Links(sides=(), inside=1e3, domain=8, outside=10.0)


def peak(fn: Callable[..., Any], *args: Any) -> int:
    return liveness.peak(program.of_jaxpr(jax.make_jaxpr(fn)(*args))).bytes


def test_products_are_stored_until_they_are_last_read() -> None:
    def chain(x: Any, w: Any) -> Any:
        for _ in range(4):
            x = x @ w
        return x

    assert peak(chain, SQUARE, SQUARE) == 2 * KIB  # one operand and one result; the last is given


def test_elementwise_work_between_products_takes_no_memory() -> None:
    def fused(x: Any, w: Any) -> Any:
        y = x @ w
        return (2 * y + jnp.sin(w) - 1).sum()

    assert peak(fused, SQUARE, SQUARE) == KIB


def test_what_several_read_is_stored_where_it_is_dear() -> None:
    def dear(x: Any, w: Any) -> Any:
        y = jnp.exp(x @ w)
        return y.sum(axis=0) + (y @ w).sum(axis=0)

    def cheap(x: Any, w: Any) -> Any:
        y = 2 * (x @ w)
        return y.sum(axis=0) + y.max(axis=0)

    assert peak(dear, SQUARE, SQUARE) >= 2 * KIB
    assert peak(cheap, SQUARE, SQUARE) < 2 * KIB


@pytest.mark.parametrize("remat", [False, True])
def test_a_loop_keeps_what_its_backward_pass_reads(remat: bool) -> None:
    def layer(x: Any, w: Any) -> Any:
        return jnp.tanh(jnp.tanh(x @ w) @ w) @ w, None

    def loss(x: Any, ws: Any) -> Any:
        step = jax.checkpoint(layer, prevent_cse=False) if remat else layer
        return jax.lax.scan(step, x, ws)[0].sum()

    stack = jax.ShapeDtypeStruct((32, 16, 16), jnp.float32)
    kept = peak(jax.grad(loss), SQUARE, stack) / KIB / 32  # matrices per layer
    assert 1 <= kept < 1.5 if remat else kept >= 3


def test_in_a_branch_the_dearest_counts() -> None:
    def choose(flag: Any, x: Any, w: Any) -> Any:
        return jax.lax.cond(flag, lambda: ((x @ w) @ (w @ x)) @ w, lambda: x)

    flag = jax.ShapeDtypeStruct((), jnp.bool_)
    assert peak(choose, flag, SQUARE, SQUARE) >= 3 * KIB


@pytest.mark.parametrize("sizes", [{"fsdp": 8}, {"tensor": 4, "data": 2}])
def test_flops_are_those_that_flops_counts(sizes: dict[str, int]) -> None:
    rule = parallel_cases.make_rule(
        "transformer", parallel_cases.family("transformer").tiny(), sizes, parallel.Rules()
    )
    batch = parallel_cases.batch_of("transformer", rule.task.model.config)
    state = jax.eval_shape(lambda: rule.init(0))
    jaxpr = jax.make_jaxpr(rule.gradients)(state, batch)
    asked = plan.demand(program.of_device(jaxpr))
    counted = flops.count(rule.gradients, state, batch).total
    # Products that nobody reads are counted by `flops`, and are no part of the program.
    assert 0.9 * counted <= 8 * asked.flops <= counted
    assert asked.traffic > 0
    kinds = {kind for kind, _ in asked.sent}
    assert ("reduce-scatter" in kinds and "all-gather" in kinds) if "fsdp" in sizes else True
    assert {axis for _, axes in asked.sent for axis in axes} == set(sizes)


def test_sent_bytes_of_a_weight_that_fsdp_splits() -> None:
    """Gathered before the product, its gradient reduce-scattered, the loss summed."""
    mesh: Any = jax.sharding.AbstractMesh((1, 1, 8, 1, 1, 1), parallel.AXES)
    spec = jax.sharding.PartitionSpec("fsdp")

    def loss(w: Any, x: Any) -> Any:
        whole = jax.lax.all_gather(w, "fsdp", axis=0, tiled=True)
        return jax.lax.psum(jnp.sum(x @ whole), "fsdp")

    run = jax.shard_map(jax.grad(loss), mesh=mesh, in_specs=(spec, spec), out_specs=spec)
    jaxpr = jax.make_jaxpr(run)(SQUARE, SQUARE)
    sent = plan.demand(program.of_device(jaxpr)).sent
    assert sent["reduce-scatter", ("fsdp",)] == KIB


@pytest.mark.parametrize(
    ("kind", "axes", "links", "expected"),
    [
        # 800 bytes over 8 devices: 700 move, over the two links of a closed side.
        ("all-gather", ("tensor",), TORUS, 800 * 7 / 8 / 2e3),
        ("reduce-scatter", ("tensor",), TORUS, 800 * 7 / 8 / 2e3),
        ("all-reduce", ("tensor",), TORUS, 2 * 800 * 7 / 8 / 2e3),
        ("permute", ("tensor",), TORUS, 800 / 1e3),
        ("all-to-all", ("tensor",), TORUS, 2 * 800 * 7 / 8 / 2e3),
        ("all-gather", ("data", "fsdp"), TORUS, 800 * 15 / 16 / 4e3),
        ("all-gather", ("tensor",), SWITCH, 800 * 7 / 8 / 1e3),
        ("all-gather", ("fsdp",), SWITCH, 800 * 3 / 4 / 10.0),  # every member in another node
        # Half of the group in a node: what the others have is fetched once per node.
        ("all-gather", ("fsdp", "tensor"), SWITCH, 800 * (32 - 8) / 32 / 8 / 10.0),
        ("all-gather", ("pipe",), SWITCH, 0.0),
    ],
)
def test_seconds(kind: str, axes: tuple[str, ...], links: Links, expected: float) -> None:
    mesh = {"pipe": 1, **MESH}
    assert plan.seconds(kind, axes, 800, mesh, links) == pytest.approx(expected)


def test_pods_without_a_known_network_are_refused() -> None:
    lone = Links(sides=(8, 8), inside=1e3, domain=64, outside=None)
    with pytest.raises(ValueError, match="domains of 64 devices.*nearest number of devices: 64"):
        plan.seconds("all-reduce", ("data",), 8, {"data": 4, "tensor": 64}, lone)


def test_the_binding_term_is_named() -> None:
    machine = Machine({"bfloat16": 1e3, "float32": 1e3}, 1e3, 1e9, SWITCH)

    def binding(work: tuple[float, float], sent: dict[Any, float], idle: float = 0.0) -> str:
        asked = plan.Demand({"bfloat16": [work]}, sent)
        return plan.predict(asked, machine, MESH, idle).binding

    assert binding((8e3, 1.0), {}) == "compute"
    assert binding((1.0, 8e3), {}) == "memory"
    assert binding((8e3, 1.0), {("all-gather", ("fsdp",)): 8e5}) == "fsdp"
    assert binding((8e3, 1.0), {("all-reduce", ("tensor",)): 8e5}) == "tensor"
    assert binding((8e3, 1.0), {}, idle=0.6) == "bubble"


def test_hidden_collectives_cost_nothing_and_the_others_add_up() -> None:
    machine = Machine({"bfloat16": 1e3, "float32": 1e3}, 1e3, 1e9, SWITCH)
    asked = plan.Demand({"bfloat16": [(8e3, 1.0)]}, {("all-gather", ("fsdp",)): 10.0})
    assert plan.predict(asked, machine, MESH).step == pytest.approx(8.0)
    asked.sent["all-reduce", ("tensor",)] = 1e3
    assert plan.predict(asked, machine, MESH).step == pytest.approx(8.0 + 2 * 7 / 8)
