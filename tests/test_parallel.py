"""One module, any mesh: two steps of every family on every mesh its names allow equal one device's.

The meshes are listed in `tests/matrix.py`. Golden numbers say how many collectives a step asks for
over which axes; and a step that lacks any one of them is found out.
"""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from nn.parallel.collectives import axis_size
from tests import golden_store, matrix, update_golden
from tests import parallel_cases as cases

TOLERANCE = 1e-5
NN = Path(__file__).resolve().parent.parent / "nn"
GOLDEN = update_golden.GOLDEN / "collectives"
JAX = ".".join(jax.__version__.split(".")[:2])
AGAIN = "if it should change: python -m tests.update_golden collectives"


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    """By name of the matrix: mesh -> how many collectives of each kind, and of which JAX."""
    read = [json.loads(path.read_text("utf-8")) for path in sorted(GOLDEN.glob("*.json"))]
    others = {found["jax"] for found in read} - {JAX}
    if others:
        warnings.warn(
            f"collectives are not compared: they are of JAX {', '.join(others)}, this is {JAX}",
            stacklevel=1,
        )
    return {found["name"]: found for found in read}


def test_the_matrix_is_whole(golden: dict[str, Any]) -> None:
    assert len(matrix.meshes()) == 6 + 15 + 12
    runs = matrix.runs()
    everywhere = {mesh for name, mesh in runs if name == "transformer"}
    assert everywhere == set(matrix.meshes())
    assert {name for name, _ in runs} == set(matrix.names())
    assert {(name, mesh) for name, x in golden.items() for mesh in x["steps"]} == set(runs)


def test_meshes_have_names() -> None:
    for mesh in ("", "tensor16", *matrix.meshes(), *matrix.quadruples()):
        assert cases.label(cases.sizes_of(mesh)) == mesh
    for wrong in ("fsdp2 tensor4", "fsdp2 x 4", "fsdp2 x x tensor4", "fsdp2 x fsdp4"):
        with pytest.raises(ValueError, match="not the name of a mesh"):
            cases.sizes_of(wrong)


def _matrix() -> list[Any]:
    """All runs of the matrix; those that differ little from others are slow: pairs of axes, beside
    single ones and triples; triples whose pairs are in others; dense families on the
    axis of experts, which to them is another `data`; experts where neither they nor the layers are
    split; and families that are made of the transformer's blocks on most meshes."""
    found = []
    for name, mesh in matrix.runs():
        split, experts = cases.sizes_of(mesh), name in matrix.WITH_EXPERTS
        own = bool(split.keys() & {"expert", "pipe"}) if experts else "expert" not in split
        single = len(split) == 1 and (own or experts)
        thorough = single or (own and mesh in matrix.PAIRWISE)
        shown = matrix.SHOWN[: 1 if name in matrix.TWO_STACKS else None]
        quick = thorough if name in matrix.THOROUGH else mesh in shown
        marks = [] if quick else [pytest.mark.slow]
        found.append(pytest.param(name, mesh, marks=marks))
    return found


@pytest.mark.parametrize(("name", "mesh"), _matrix())
def test_mesh_equals_one_device(name: str, mesh: str, golden: dict[str, Any]) -> None:
    outcome = matrix.measure(name, mesh)
    for what, (error, where) in matrix.errors(name, outcome).items():
        limit = 0.0 if what == "initial" else TOLERANCE
        assert error <= limit, f"{what}, {where}: relative error {error:.1e}"
    # Other versions of JAX may write the same step down with more or fewer of them.
    if golden[name]["jax"] == JAX:
        assert outcome.collectives == golden[name]["steps"][mesh], AGAIN


@pytest.mark.slow
def test_quadruples_equal_one_device() -> None:
    """They need sixteen devices, hence a process of their own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.matrix", "16"],
        cwd=golden_store.GOLDEN.parents[2],
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count("transformer with experts") == 1 + len(matrix.quadruples())


def _own_part(x: jax.Array, axis: str, dim: int) -> jax.Array:
    size = x.shape[dim] // axis_size(axis)
    return lax.dynamic_slice_in_dim(x, lax.axis_index(axis) * size, size, dim)


# What is left of each collective when nothing is sent: values of the same shape.
SILENT: dict[str, Callable[..., jax.Array]] = {
    "psum": lambda x, axes: x,
    "pmax": lambda x, axes: x,
    "pmean": lambda x, axes: x,
    "ppermute": lambda x, over, perm: x,
    "all_gather": lambda x, over, axis, tiled, to: jnp.concatenate([x] * axis_size(over), axis),
    "psum_scatter": lambda x, over, scatter_dimension, tiled: _own_part(x, over, scatter_dimension),
    "all_to_all": lambda x, over, split_axis, concat_axis, tiled: jnp.concatenate(
        jnp.split(x, axis_size(over), split_axis), concat_axis
    ),
}


Site = tuple[str, ...]


def _site(name: str) -> Site:
    """A collective and the lines of our own that lead to it. A loop's body may be traced more than
    once, and thrown away all times but one: by its number a collective could not be told."""
    lines, frame = [], inspect.currentframe()
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if NN in path.parents:
            lines.append(f"{path.relative_to(NN)}:{frame.f_lineno}")
        frame = frame.f_back
    return (name, *lines)


class Censor:
    """Notes where collectives are traced, and silences those of one place."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, silence: Site | None = None) -> None:
        self.seen: dict[Site, None] = {}
        self.silence, self.silenced = silence, False
        for name in SILENT:
            monkeypatch.setattr(lax, name, self._wrapped(name, getattr(lax, name)))

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            site = _site(name)
            self.seen[site] = None
            if site != self.silence:
                return real(*args, **options)
            found = SILENT[name](*args, **options)
            self.silenced = True
            return found

        return call


def _patches() -> Iterator[pytest.MonkeyPatch]:
    while True:
        with pytest.MonkeyPatch.context() as patch:
            yield patch


# (family, mesh, and what its rules have that those of the matrix have not)
MUTATED = [
    ("mlp", "fsdp2 x expert2 x tensor2", {}),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            ("transformer", "fsdp2 x tensor2", {}),
            ("transformer", "data2 x fsdp2 x tensor2", {}),
            ("transformer", "pipe2 x context2 x tensor2", {}),
            ("transformer", "pipe2 x fsdp2", {"schedule": "interleaved", "rounds": 2}),
            ("transformer", "data2 x context2", {"attention": "ulysses"}),
            ("transformer with experts", "fsdp2 x expert2 x tensor2", {}),
            ("transformer with experts", "pipe2 x expert2", {"schedule": "1f1b"}),
            ("transformer with experts", "data2 x expert2", {"dispatch": "all_to_all"}),
            ("transformer with experts", "data2 x expert2", {"dispatch": "ragged"}),
            ("resnet", "data2 x context2 x tensor2", {}),
        )
    ),
]


@pytest.mark.parametrize(("name", "mesh", "use"), MUTATED)
def test_a_step_that_lacks_a_collective_is_found_out(
    name: str, mesh: str, use: dict[str, Any]
) -> None:
    """By the types, which refuse to compile it, or by its numbers."""
    patches = _patches()
    whole = Censor(next(patches))
    matrix.one_device(name)
    assert whole.seen == {}
    asked = matrix.measure(name, mesh, **use)
    assert max(error for error, _ in matrix.errors(name, asked).values()) <= TOLERANCE
    escaped, refused, wrong = [], 0, 0
    for site in whole.seen:
        censor = Censor(next(patches), silence=site)
        try:
            outcome = matrix.measure(name, mesh, **use)
        except (TypeError, ValueError):
            assert censor.silenced, f"{site}: its stand-in failed"
            refused += 1
            continue
        if outcome.program == asked.program:
            continue  # no part of the step, such as a primal whose gradient has rules of its own
        errors = matrix.errors(name, outcome)
        wrong += max(error for error, _ in errors.values()) > TOLERANCE
        if max(error for error, _ in errors.values()) <= TOLERANCE:
            escaped.append(site)
    patches.close()
    assert escaped == []
    assert refused + wrong > 0


def test_unchecked_types_would_let_a_wrong_gradient_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why `check_vma` is on: without it the sums of gradients are not inserted, silently."""
    real = jax.shard_map
    monkeypatch.setattr(jax, "shard_map", lambda f, **o: real(f, **(o | {"check_vma": False})))
    monkeypatch.setattr(lax, "pcast", lambda x, axes, to: x)
    monkeypatch.setattr("nn.parallel.collectives.varying", lambda x: tuple(matrix.AXES))
    errors = matrix.errors("mlp", matrix.measure("mlp", "data8"))
    assert errors["gradients"][0] > 0.1
