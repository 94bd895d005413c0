"""Every optimizer on a mesh: its state lies beside the parameters, its updates are one device's."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from experiments import base
from launch.run import optimizer
from nn import parallel
from nn.parallel.optimizer import optimizer_specs
from tests import parallel_cases as cases

SIZES = {"data": 2, "fsdp": 2, "tensor": 2}
# Wide enough that adafactor factors its matrices.
CONFIG = dataclasses.replace(
    cases.family("transformer").tiny(), vocab_size=160, dim=128, mlp_dim=256, num_layers=3
)


@functools.cache
def problem() -> tuple[Any, Any, Any, Any]:
    """Named parameters, their values, a gradient for each of two steps, the specs."""
    rule = cases.make_rule("transformer", CONFIG, SIZES, parallel.Rules())
    named = rule.task.variables(0)["params"]
    values = jax.device_get(parallel.unbox(named))
    random = np.random.default_rng(0)

    def draw(x: np.ndarray) -> np.ndarray:
        return random.normal(size=(2, *x.shape)).astype(np.float32)

    return named, values, jax.tree.map(draw, values), rule.task


def chain(name: str, shardings: Any = None) -> Any:
    section = base.get_config().optimizer
    section.name = name
    return optimizer.make(section, 10, problem()[0], shardings)[0]


def two_updates(transform: Any, put: Any, places: Any = None) -> tuple[Any, Any]:
    """The sum of two updates of the same gradients, and the state after them."""
    _, values, gradients, _ = problem()
    init = jax.jit(transform.init, out_shardings=places)
    update = jax.jit(transform.update, out_shardings=None if places is None else (None, places))
    params = put(values)
    state, total = init(params), None
    for step in (0, 1):
        found, state = update(put(jax.tree.map(lambda g, s=step: g[s], gradients)), state, params)
        found = jax.device_get(found)
        total = found if total is None else jax.tree.map(np.add, total, found)
    return total, state


# Muon makes five products of matrices, which add up in another order.
TOLERANCE = dict.fromkeys(optimizer.NAMES, 1e-6) | {"muon": 1e-5}


@pytest.mark.parametrize("name", optimizer.NAMES)
def test_updates_are_those_of_one_device(name: str) -> None:
    named, values, _, task = problem()
    specs = parallel.specs(named, task.rules, task.mesh)
    shardings = parallel.shardings(task.mesh, specs)
    transform = chain(name, shardings)
    abstract = jax.eval_shape(lambda: values)
    places = parallel.shardings(task.mesh, optimizer_specs(transform, abstract, specs, task.mesh))
    ours, state = two_updates(transform, lambda t: jax.device_put(t, shardings), places)
    theirs, reference = two_updates(chain(name), lambda t: t)
    error, leaf = cases.worst(ours, theirs)
    assert error <= TOLERANCE[name], f"update of {leaf}: relative error {error:.1e}"
    assert jax.tree.structure(state) == jax.tree.structure(reference)


def by_path(tree: Any, specs: Any) -> dict[str, tuple[tuple[int, ...], tuple[Any, ...]]]:
    """path -> shape, and the mesh axis of each dimension."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    found = jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, P))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            x.shape,
            (*spec, *[None] * (x.ndim - len(spec))),
        )
        for (path, x), spec in zip(leaves, found, strict=True)
    }


# Moments like the parameters.
WHOLE = dict.fromkeys(optimizer.NAMES, 1) | {"sgd": 0, "adam": 2, "adamw": 2, "lamb": 2}


@pytest.mark.parametrize("name", optimizer.NAMES)
def test_the_state_lies_beside_the_parameters(name: str) -> None:
    """By abstract evaluation alone; a factor of a moment lies as the dimensions that it has."""
    named, values, _, task = problem()
    specs = parallel.specs(named, task.rules, task.mesh)
    transform = chain(name, parallel.shardings(task.mesh, specs))
    abstract = jax.eval_shape(lambda: values)
    found = by_path(
        jax.eval_shape(transform.init, abstract),
        optimizer_specs(transform, abstract, specs, task.mesh),
    )
    whole, factors = 0, 0
    for owner, (full, axes) in by_path(abstract, specs).items():
        for shape, own in (value for path, value in found.items() if path.endswith(owner)):
            if shape == full:
                assert own == axes, owner
                whole += 1
            elif shape[-1] > 1:  # of size 1: there is none
                (gone,) = (d for d in range(len(full)) if full[:d] + full[d + 1 :] == shape)
                assert own == axes[:gone] + axes[gone + 1 :], owner
                factors += 1
    leaves = len(jax.tree.leaves(values))
    if name == "adafactor":
        assert (whole, factors) == (leaves - 3, 6)  # the table and two kernels are factored
    elif name == "muon":
        assert leaves < whole < 2 * leaves  # adam's two moments for what is no hidden matrix
    else:
        assert whole == WHOLE[name] * leaves
