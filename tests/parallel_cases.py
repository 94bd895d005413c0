"""What tests of meshes share: names of meshes, families and batches, one step, and how to compare.

A mesh is named by its axes, each with its size: "fsdp2 x tensor4"; one device is "".
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
import re
from typing import Any

import jax
import numpy as np
import optax
import pytest

from launch.run.state import initial_state
from launch.run.step import to_mesh
from nn import families, parallel
from nn.learning import backprop
from nn.learning.task import Task

BATCH = 16
TOLERANCE = 1e-5


def sizes_of(mesh: str) -> dict[str, int]:
    """The size of each axis of a mesh by its name; ValueError where it is not a name."""
    sizes = {axis: int(size) for axis, size in re.findall(r"([a-z]+)(\d+)", mesh)}
    if " x ".join(f"{axis}{size}" for axis, size in sizes.items()) != mesh:
        raise ValueError(f"{mesh!r} is not the name of a mesh, such as 'fsdp2 x tensor4'")
    return sizes


def label(sizes: dict[str, int]) -> str:
    """The name of a mesh, its axes in their order."""
    return " x ".join(f"{axis}{sizes[axis]}" for axis in parallel.AXES if axis in sizes)


_NAMES = ("data8", "fsdp8", "tensor4 x data2", "fsdp2 x tensor2 x data2")
MESHES = {name: sizes_of(name) for name in _NAMES}


def family_names() -> list[str]:
    return sorted(info.name for info in pkgutil.iter_modules(families.__path__))


def family(name: str) -> Any:
    return importlib.import_module(f"nn.families.{name}")


def llama(config: Any) -> Any:
    """A decoder of this size in the manner of Llama: what GPT-2 has, it has not."""
    return dataclasses.replace(
        config,
        num_heads=8,
        num_kv_heads=4,
        activation="swiglu",
        norm="rms",
        position="rotary",
        bias=False,
        tie_embeddings=False,
        remat="block",
    )


def objective_of(name: str) -> Any:
    """The first of the objectives that train a family."""
    return importlib.import_module(f"nn.objectives.{family(name).OBJECTIVES[0]}")


def batch_of(name: str, config: Any) -> dict[str, np.ndarray]:
    """A batch of that objective, as tests/batches says."""
    objective = family(name).OBJECTIVES[0]
    made: dict[str, np.ndarray] = importlib.import_module(f"tests.batches.{objective}").batch(
        family(name), config, BATCH
    )
    return made


def make_rule(
    name: str,
    config: Any,
    sizes: dict[str, int],
    rules: parallel.Rules,
    optimizer: optax.GradientTransformation | None = None,
    **options: Any,
) -> backprop.Rule:
    """A backprop rule, by AdamW if nothing else is said, on the first devices the mesh needs."""
    task = Task(
        model=family(name).Model(config),
        example=family(name).example(config, 2),
        objective=objective_of(name),
        objective_config=objective_of(name).Config(),
        optimizer=optax.adamw(1e-3) if optimizer is None else optimizer,
        mesh=parallel.make_mesh(sizes, jax.devices()[: math.prod(sizes.values())]),
        rules=rules,
    )
    return backprop.Rule(backprop.Config(**options), task)


@dataclasses.dataclass
class Result:
    params: Any
    loss: float
    gradients: Any
    variables: Any
    means: dict[str, float]


def measure(
    name: str,
    config: Any,
    sizes: dict[str, int],
    rules: parallel.Rules | None = None,
    **options: Any,
) -> Result:
    """Initial parameters, loss, gradients and new statistics of one step on a mesh."""
    rules = parallel.Rules(sequence_parallel=True) if rules is None else rules
    rule = make_rule(name, config, sizes, rules, **options)
    state = initial_state(rule, 0)
    gradients, sums, variables = jax.jit(rule.gradients)(
        state, to_mesh(rule, batch_of(name, config))
    )
    means = {name: float(total / count) for name, (total, count) in sums.items()}
    return Result(
        jax.device_get(state.params),
        means["loss"],
        jax.device_get(gradients),
        jax.device_get(variables),
        means,
    )


def difference(new: Any, reference: Any, floor: float) -> float:
    """The largest, relative to the largest entry or to `floor`; infinite where one is no number."""
    gap = np.abs(np.asarray(new, np.float64) - reference).max()
    error = float(gap / max(np.abs(reference).max(), floor, 1e-30))
    return error if math.isfinite(error) else math.inf


def worst(new: Any, reference: Any) -> tuple[float, str]:
    """Largest relative difference of a leaf, and the leaf.

    Relative to the largest entry of the leaf, or to 1e-4 of the largest of all leaves where that
    is more: the gradient of a key bias is zero but for rounding, by the symmetry of the softmax.
    """
    floor = 1e-4 * max((np.abs(x).max() for x in jax.tree.leaves(reference)), default=0.0)
    paths = jax.tree_util.tree_leaves_with_path(reference)
    errors = {
        jax.tree_util.keystr(path, simple=True, separator="/"): difference(b, a, floor)
        for (path, a), b in zip(paths, jax.tree.leaves(new), strict=True)
    }
    name = max(errors, key=errors.__getitem__, default="")
    return (errors[name], name) if name else (0.0, "")


def assert_same(result: Result, reference: Result) -> None:
    """The same initial parameters, bit for bit; and to 1e-5 the same means (the loss and what is
    measured beside it), gradients and statistics, leaf by leaf."""
    jax.tree.map(np.testing.assert_array_equal, result.params, reference.params)
    assert result.means == pytest.approx(reference.means, rel=TOLERANCE)
    assert_close(result.gradients, reference.gradients, "gradient")
    assert_close(result.variables, reference.variables, "statistic")


def assert_close(new: Any, reference: Any, what: str, tolerance: float = TOLERANCE) -> None:
    """Two trees are the same, in the sense of `worst`."""
    error, leaf = worst(new, reference)
    assert error <= tolerance, f"{what} of {leaf}: relative error {error:.1e}"
