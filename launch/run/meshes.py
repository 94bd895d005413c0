"""Which meshes a config can run on: every way to share a number of devices out over the axes."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType
from ml_collections import FrozenConfigDict

from launch.run import config as configs
from launch.run.build import attention_of, check_task
from nn import parallel
from nn.learning.task import Task
from nn.parallel.weight import is_named

Sizes = dict[str, int]  # axis -> size, all axes, in their order


def abstract(sizes: Mapping[str, int]) -> AbstractMesh:
    """A mesh of devices that need not be there, for all that only traces."""
    shape = tuple(sizes[axis] for axis in parallel.AXES)
    return AbstractMesh(shape, parallel.AXES, axis_types=(AxisType.Auto,) * len(shape))


def splits(devices: int, axes: tuple[str, ...] = parallel.AXES) -> Iterator[Sizes]:
    """Every way to write `devices` as a product of sizes of `axes`; the other axes are 1."""

    def rest(number: int, names: tuple[str, ...]) -> Iterator[tuple[int, ...]]:
        if len(names) == 1:
            yield (number,)
            return
        for size in range(1, number + 1):
            if number % size == 0:
                yield from ((size, *more) for more in rest(number // size, names[1:]))

    for sizes in rest(devices, axes):
        yield dict.fromkeys(parallel.AXES, 1) | dict(zip(axes, sizes, strict=True))


class Judge:
    """Says whether a config runs on a mesh, by the rules that `build` applies."""

    def __init__(self, config: FrozenConfigDict, task: Task, named: Any) -> None:
        """named: the abstract variables, each `Named`."""
        self.config, self.task, self.named = config, task, named
        self.model = configs.section(config, "model")
        self.closed = self._closed()

    def _closed(self) -> dict[str, str]:
        """Axes that cannot be larger than 1 whatever the size, and why."""
        leaves = jax.tree.leaves(self.named["params"], is_leaf=is_named)
        used = {self.task.rules.axis(name) for leaf in leaves for name in leaf.names}
        why = {
            axis: f"no weight of the model is split over {axis}"
            for axis in ("pipe", "expert", "tensor", "fsdp")
            if axis not in used
        }
        if not self.task.is_sequence("inputs"):
            why["context"] = "the batch has no positions"
        if self.config.mesh.microbatches == 1:
            why["pipe"] = "mesh.microbatches=1 leaves a pipeline idle"
        return why

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes that may be larger than 1."""
        return tuple(axis for axis in parallel.AXES if axis not in self.closed)

    def on(self, sizes: Sizes) -> Task:
        """The task on a mesh. Raises ValueError where no attention suits it."""
        mesh: Any = abstract(sizes)
        attention, _ = attention_of(self.config, mesh, self.model)
        rules = dataclasses.replace(self.task.rules, attention=attention)
        return dataclasses.replace(self.task, mesh=mesh, rules=rules)

    def refusal(self, sizes: Sizes) -> str | None:
        """Why the config does not run on this mesh, or None."""
        for axis, why in self.closed.items():
            if sizes[axis] > 1:
                return why
        try:
            check_task(self.config, self.on(sizes), self.named)
        except ValueError as error:
            return str(error)
        return None


def summarize(reasons: list[str]) -> list[str]:
    """How many meshes for which kind of reason, the most frequent first."""
    kinds = collections.Counter(_kind(reason) for reason in reasons)
    return [f"{count} {kind}" for kind, count in kinds.most_common()]


def _kind(reason: str) -> str:
    """A refusal without its numbers."""
    for mark, kind in (
        ("data.batch_size", "do not divide the batch"),
        ("data.sequence_length", "do not divide the sequence"),
        ("positions", "do not divide the sequence"),
        ("weight ", "do not divide a weight"),
        ("layers cannot be cut", "do not divide the layers"),
        ("mesh.microbatches=", "do not go with the microbatches"),
        ("share the head out", "do not divide the head among the stages"),
        ("heads", "do not divide the heads"),
    ):
        if mark in reason:
            return kind
    return reason


def as_text(sizes: Mapping[str, int]) -> str:
    """The axes above 1, such as "fsdp=64 tensor=8"."""
    return " ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1) or "one device"


def degree(sizes: Mapping[str, int]) -> int:
    """Devices that work on the same examples."""
    return math.prod(n for axis, n in sizes.items() if axis not in parallel.BATCH_AXES)
