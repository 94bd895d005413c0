"""How fast a compiled step can be at best, and what the parameters alone make it send.

A roofline (Williams et al. 2009): the step takes as long as the slowest of its products at the
peak, its memory traffic at the bandwidth, and the collectives over each axis on their links, if
all go on at once. `exposed_s` is what is left of that hope: collectives with no product beside
them are waited for.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from launch.cluster.hardware import Chip
from launch.cluster.topology import Topology, bandwidth
from launch.run.build import Run
from launch.run.hlo_collectives import OTHER
from nn import parallel
from nn.analysis import flops
from nn.analysis.flops import Flops
from nn.parallel.mesh import AXES, BATCH_AXES, SEQUENCE_AXES
from nn.parallel.weight import is_named

Term = tuple[int, int, int, str]  # of a formula: times, bytes of a number, numbers, of what


def group_of(mesh: jax.sharding.Mesh, axes: Sequence[str]) -> np.ndarray:
    """The devices that the first device communicates with over `axes`; all of them for OTHER."""
    if list(axes) == [OTHER]:
        return mesh.devices
    return mesh.devices[tuple(slice(None) if axis in axes else 0 for axis in mesh.axis_names)]


def add_times(
    rows: Sequence[dict[str, Any]], chip: Chip, topology: Topology, mesh: jax.sharding.Mesh
) -> None:
    """Give every row of `collectives.summarize` its bandwidth (bytes/s) and time (s)."""
    for row in rows:
        speed = bandwidth(chip, topology, group_of(mesh, row["axes"]))
        row["bandwidth"] = speed
        row["seconds"] = row["bytes"] / speed


def roofline(
    executed: Flops,
    model: Flops,
    traffic: int,
    rows: Sequence[Mapping[str, Any]],
    chip: Chip,
    devices: int,
    dtype: Any,
) -> dict[str, Any]:
    """Times in seconds, the term that binds, and MFU in both conventions for attention.

    traffic: bytes of memory per device. rows: collectives with their times.
    """
    peak = chip.peak(dtype)
    assert peak is not None
    times = {
        "compute": executed.total / devices / peak,
        "memory": traffic / (chip.memory_bandwidth / chip.devices),
    }
    for row in rows:
        name = "+".join(row["axes"])
        times[name] = times.get(name, 0.0) + row["seconds"]
    bound = max(times, key=lambda name: times[name])
    alone = sum(r["seconds"] * (1 - r["overlapped_bytes"] / max(r["bytes"], 1)) for r in rows)
    exposed = max(times["compute"], times["memory"]) + alone
    return {
        "peak_flops": peak,
        "seconds": times,
        "bound": bound,
        "step_s": times[bound],
        "exposed_s": max(exposed, times[bound]),
        "mfu": flops.mfus(model, times[bound], devices, peak),
        "mfu_exposed": flops.mfus(model, max(exposed, times[bound]), devices, peak),
    }


@dataclasses.dataclass(frozen=True)
class Use:
    """Weights by what a step does with them.

    kind: how formulas name them. size: elements of a device's share.
    split: whether fsdp splits them; they are gathered `gathers` times, their gradient is scattered
      or summed `scatters` times, in numbers of `width` bytes, and summed over `axes`.
    """

    kind: str
    size: int
    split: bool
    axes: tuple[str, ...]
    gathers: int
    scatters: int
    width: int


def parameter_traffic(run: Run) -> list[dict[str, Any]]:
    """What parameters and their gradients alone make a device send in a step, as formulas.

    A weight that fsdp splits is gathered where it is used, in the compute dtype, and its gradient
    reduce-scattered in that of `mesh.reduce_dtype`. Every gradient is then summed over the axes
    that split activations and not the weight: those of the batch, context and, under sequence
    parallelism, tensor. Accumulated gradients are summed once, at the end, but over tensor.

    Not told apart: routers, which are gathered in float32; blocks that are computed again without
    being stacked, which are gathered again; a table whose vocabulary tensor does not divide, of
    whose lookup tensor sums activations and not the gradient; tables that a compiler gathers once
    for all microbatches that are accumulated.
    Returns [] where there is a pipeline: its stages gather their weights again at every tick.
    """
    task, parts = run.rule.task, run.config.rule.accumulate
    sizes = dict(task.mesh.shape)
    if sizes["pipe"] > 1:
        return []
    uses, narrow = _uses(run), np.dtype(task.model.dtype).itemsize
    split, f = [use for use in uses if use.split], sizes["fsdp"]
    gathers = [(u.gathers, narrow, u.size * f, u.kind) for u in split]
    scatters = [(u.scatters, u.width, u.size * f, u.kind) for u in split]
    rows = []
    if split:
        rows += [_row(("fsdp",), "all-gather", gathers, sizes)]
        rows += [_row(("fsdp",), "reduce-scatter", scatters, sizes)]
    sums: dict[tuple[str, ...], list[Term]] = collections.defaultdict(list)
    for use in uses:
        late = tuple(axis for axis in use.axes if axis != "tensor") if parts > 1 else ()
        at_once = tuple(axis for axis in use.axes if axis not in late)
        for axes, times in ((late, 1), (at_once, use.scatters)):
            if axes:
                sums[axes].append((times, use.width, use.size, use.kind))
    return rows + [_row(axes, "all-reduce", terms, sizes) for axes, terms in sorted(sums.items())]


def _row(
    axes: tuple[str, ...], kind: str, terms: Sequence[Term], sizes: Mapping[str, int]
) -> dict[str, Any]:
    """Formula and bytes of one kind of collective: see `hlo_collectives.bytes_sent`."""
    n, ways = math.prod(sizes[axis] for axis in axes), 2 if kind == "all-reduce" else 1
    words = " + ".join(
        f"{times} x {width} bytes x {size} {name}" for times, width, size, name in terms
    )
    moved = ways * sum(times * width * size for times, width, size, _ in terms) * (n - 1) // n
    formula = f"{'2 x ' if ways == 2 else ''}({words}) x ({n} - 1) / {n}"
    return {"axes": list(axes), "kind": kind, "formula": formula, "bytes": moved}


def _uses(run: Run) -> list[Use]:
    """The weights of the run, those that are used alike together.

    Stacked layers are gathered again where the backward pass computes them again. The head is
    gathered once, whatever the chunks in which it is applied, and so is a tied table, which has two
    gradients, one of each end; compilers sum each of them.
    """
    task, config = run.rule.task, run.config
    sizes, rules, model = dict(task.mesh.shape), task.rules, config.model
    again = "remat" in model and model.remat != "none"
    tied = "tie_embeddings" in model and model.tie_embeddings
    reduced = np.promote_types(rules.reduce_dtype, task.model.dtype).itemsize
    spread = [*BATCH_AXES, *SEQUENCE_AXES, *(["tensor"] if rules.sequence_parallel else [])]
    found: collections.Counter[Use] = collections.Counter()
    for weight, spec in _weights(run):
        own = {axis for axis in spec if axis is not None}
        size = math.prod(weight.value.shape) // math.prod(sizes[axis] for axis in own)
        vector = "fsdp" not in map(rules.axis, weight.names)
        stacked, table = "layers" in weight.names, "vocab" in weight.names
        kind = "tied table" if table and tied else "tables" if table else "others"
        kind = "norms and biases" if vector else "layers" if stacked else kind
        times = config.rule.accumulate
        found[
            Use(
                kind=kind,
                size=0,
                split="fsdp" in own,
                axes=tuple(a for a in AXES if a in spread and a not in own and sizes[a] > 1),
                gathers=times * (2 if stacked and again else 1) if "fsdp" in own else 0,
                scatters=times * (2 if table and tied else 1),
                width=4 if vector else reduced,  # scales of norms are used in float32
            )
        ] += size
    return [dataclasses.replace(use, size=size) for use, size in found.items()]


def _weights(run: Run) -> list[tuple[Any, P]]:
    """Every parameter, abstract and `Named`, with its partition."""
    task, named = run.rule.task, run.named["params"]
    specs = parallel.specs(named, task.rules, task.mesh)
    leaves = jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, P))
    return list(zip(jax.tree.leaves(named, is_leaf=is_named), leaves, strict=True))
