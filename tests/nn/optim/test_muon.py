"""Muon against Optax's on one device, and on meshes against one device."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from optax import contrib

from nn import parallel
from nn.optim.muon import scale_by_muon
from tests import collectives_of
from tests import parallel_cases as cases

# shape, inputs and outputs, what splits it.
WEIGHTS = {
    "query": ((16, 8, 16, 4), (1,), (2, 3), P("pipe", "fsdp", "tensor", None)),
    "out": ((16, 16, 4, 8), (1, 2), (3,), P("pipe", "tensor", None, "fsdp")),
    "up": ((6, 8, 32), (1,), (2,), P("pipe", "fsdp", "tensor")),
    "down": ((2, 32, 8), (1,), (2,), P(None, "tensor", "fsdp")),
    "expert": ((4, 2, 24, 8), (2,), (3,), P(None, "data", None, "tensor")),
    "alone": ((8, 24), (0,), (1,), P("fsdp", "tensor")),
    "whole": ((3, 8, 5), (1,), (2,), P(None, None, None)),
}
DIMENSIONS = {n: contrib.MuonDimensionNumbers(i, o) for n, (_, i, o, _) in WEIGHTS.items()}
MESHES = {
    "fsdp8": {"fsdp": 8},
    "tensor8": {"tensor": 8},
    "fsdp4 x tensor2": {"fsdp": 4, "tensor": 2},
    "data2 x fsdp2 x tensor2": {"data": 2, "fsdp": 2, "tensor": 2},
    "pipe2 x fsdp2 x tensor2": {"pipe": 2, "fsdp": 2, "tensor": 2},
}


def draw(seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {n: random.normal(size=s).astype(np.float32) for n, (s, *_) in WEIGHTS.items()}


def shardings_on(mesh: jax.sharding.Mesh) -> dict[str, NamedSharding]:
    def spec(wanted: P) -> P:
        return P(*(axis if axis and mesh.shape[axis] > 1 else None for axis in wanted))

    return {n: NamedSharding(mesh, spec(s)) for n, (*_, s) in WEIGHTS.items()}


def updates_of(transform: optax.GradientTransformation, places: Any = None) -> list[Any]:
    """The updates of three steps."""

    def put(tree: Any) -> Any:
        return tree if places is None else jax.tree.map(jax.device_put, tree, places)

    state, update, found = transform.init(put(draw(0))), jax.jit(transform.update), []
    for step in range(3):
        updates, state = update(put(draw(1 + step)), state)
        if places is not None:
            for name, x in updates.items():
                assert x.sharding.is_equivalent_to(places[name], x.ndim), name
        found.append(jax.device_get(updates))
    return found


def test_one_device_equals_optax() -> None:
    ours = updates_of(scale_by_muon(0.9, DIMENSIONS))
    theirs = updates_of(contrib.scale_by_muon(beta=0.9, weight_dimension_numbers=DIMENSIONS))
    error, leaf = cases.worst(ours, theirs)
    assert error <= 1e-5, f"{leaf}: relative error {error:.1e}"


@pytest.mark.parametrize("name", MESHES)
def test_a_mesh_equals_one_device(name: str) -> None:
    places = shardings_on(parallel.make_mesh(MESHES[name], jax.devices()))
    found = updates_of(scale_by_muon(0.9, DIMENSIONS, places), places)
    error, leaf = cases.worst(found, updates_of(scale_by_muon(0.9, DIMENSIONS)))
    assert error <= 1e-5, f"{leaf}: relative error {error:.1e}"


def moved(transform: optax.GradientTransformation, places: Any) -> int:
    """Bytes that come out of the collectives of one update, per device."""
    tree = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), draw(0), places
    )
    state = jax.eval_shape(transform.init, tree)
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=by_shape(x.shape, places)), state
    )
    text = (
        jax.jit(transform.update, out_shardings=(places, None))
        .lower(tree, state)
        .compile()
        .as_text()
    )
    return sum(c.bytes for c in collectives_of.in_hlo(text))


def by_shape(shape: tuple[int, ...], places: Any) -> NamedSharding:
    found = [places[n] for n, (s, *_) in WEIGHTS.items() if s == shape]
    mesh = places["query"].mesh
    return found[0] if found else NamedSharding(mesh, P())


@pytest.mark.parametrize("name", MESHES)
def test_it_moves_less_than_the_partitioner_does(name: str) -> None:
    places = shardings_on(parallel.make_mesh(MESHES[name], jax.devices()))
    ours = moved(scale_by_muon(0.9, DIMENSIONS, places), places)
    theirs = moved(contrib.scale_by_muon(beta=0.9, weight_dimension_numbers=DIMENSIONS), places)
    assert ours < theirs / 4


def test_the_collectives_are_two_per_stack() -> None:
    places = shardings_on(parallel.make_mesh({"fsdp": 4, "tensor": 2}, jax.devices()))
    transform = scale_by_muon(0.9, DIMENSIONS, places)
    found = collectives_of.in_jaxpr(transform.update, draw(0), transform.init(draw(0)))
    # query, out, up, down and expert; the one that stands alone is gathered along both dimensions.
    assert sorted(c.kind for c in found) == ["all-gather"] * 2 + ["all-to-all"] * 10
    share = np.prod(WEIGHTS["query"][0]) * 4 // 8
    assert [c.bytes for c in found if c.axes == ("fsdp", "tensor")].count(share) == 2
