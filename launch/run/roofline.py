"""How fast a compiled step can be at best, and what the parameters alone make it send.

A roofline (Williams et al. 2009): the step takes as long as the slowest of its products at the
peak, its memory traffic at the bandwidth, and the collectives over each axis on their links, if
all go on at once. `exposed_s` is what is left of that hope: collectives with no product beside
them are waited for.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from launch.cluster.hardware import Chip
from launch.cluster.topology import Topology, bandwidth
from launch.run.collectives import OTHER
from nn.analysis import flops
from nn.analysis.flops import Flops
from nn.parallel.mesh import BATCH_AXES


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
        "mfu": _mfu(model, times[bound], devices, peak),
        "mfu_exposed": _mfu(model, max(exposed, times[bound]), devices, peak),
    }


def _mfu(model: Flops, seconds: float, devices: int, peak: float) -> dict[str, float]:
    return {
        convention: flops.mfu(model, seconds, devices, peak, convention).value
        for convention in flops.ATTENTION
    }


@dataclasses.dataclass(frozen=True)
class Use:
    """Weights that are used alike: how often a step gathers them and scatters their gradient.

    split, whole: elements of a device's share, of weights that fsdp splits and of the others.
    """

    name: str
    gathers: int
    scatters: int
    split: int = 0
    whole: int = 0


def parameter_traffic(run: Any) -> list[dict[str, Any]]:
    """What parameters and their gradients alone make a device send in a step, as formulas.

    A weight that fsdp splits is gathered where it is used, in the compute dtype, and its gradient
    reduce-scattered in that of `mesh.reduce_dtype`; the gradient of its share is then summed over
    data. What fsdp does not split is summed over data and fsdp.
    """
    task = run.rule.task
    mesh = dict(task.mesh.shape)
    f, d = mesh["fsdp"], mesh["data"]
    width = np.dtype(task.model.dtype).itemsize
    wide = max(width, np.dtype(task.rules.reduce_dtype).itemsize)
    uses, parts = _uses(run), run.config.rule.accumulate
    split = sum(u.split for u in uses)
    rows = []

    def sums_of(use: Use) -> tuple[int, int]:
        """How often gradients are summed over data, and bytes of each of their numbers.

        Microbatches that are accumulated are summed once, at the end. The scales of norms are
        used in float32.
        """
        return (1 if parts > 1 else use.scatters), (4 if use.name == "norms" else wide)

    if f > 1 and split:
        for kind, key, each in (
            ("all-gather", "gathers", width),
            ("reduce-scatter", "scatters", wide),
        ):
            used = [(getattr(u, key), u.split * f, u.name) for u in uses if u.split]
            terms = " + ".join(f"{times} x {size} {name}" for times, size, name in used)
            moved = sum(times * size for times, size, _ in used) * each * (f - 1) // f
            text = f"{each} bytes x ({terms}) x ({f} - 1) / {f}"
            rows.append({"axes": ["fsdp"], "kind": kind, "formula": text, "bytes": moved})
    if d > 1 and split:
        terms, moved = _sum_over(d, [(*sums_of(u), u.split, u.name) for u in uses if u.split])
        rows.append({"axes": ["data"], "kind": "all-reduce", "formula": terms, "bytes": moved})
    n = math.prod(mesh[axis] for axis in BATCH_AXES)
    left = [use for use in uses if use.whole]
    if n > 1 and left:
        axes = [axis for axis in BATCH_AXES if mesh[axis] > 1]
        terms, moved = _sum_over(n, [(*sums_of(u), u.whole, f"whole {u.name}") for u in left])
        rows.append({"axes": axes, "kind": "all-reduce", "formula": terms, "bytes": moved})
    return rows


def _sum_over(n: int, used: Sequence[tuple[int, int, int, str]]) -> tuple[str, int]:
    """Formula and bytes of all-reduces among n devices: (times, bytes of each, numbers, name)."""
    terms = " + ".join(
        f"{times} x {width} bytes x {size} {name}" for times, width, size, name in used
    )
    moved = 2 * sum(times * width * size for times, width, size, _ in used) * (n - 1) // n
    return f"2 x ({terms}) x ({n} - 1) / {n}", moved


def _uses(run: Any) -> list[Use]:
    """The weights of the run by how often they are used.

    Those of blocks are gathered again where the backward pass computes the block again. The head
    is gathered once, whatever the chunks in which it is applied.
    """
    model, config = run.config.model, run.config
    again = "remat" in model and model.remat != "none"
    parts = config.rule.accumulate
    tied = "tie_embeddings" in model and model.tie_embeddings
    blocks = Use("blocks", (2 if again else 1) * parts, parts)
    once = Use("embedding", parts, parts)
    head = Use("head", parts, parts)
    if tied:
        once = dataclasses.replace(head, name="embedding and head")
    norms = Use("norms", parts, parts)
    totals = {u.name: u for u in (blocks, once, head, norms)}
    for path, size, axes in _shares(run):
        use = blocks if path.startswith("blocks") else head if path.startswith("output") else once
        use = norms if "norm" in path and not axes else use
        kind = "split" if "fsdp" in axes else "whole"
        held = totals[use.name]
        totals[use.name] = dataclasses.replace(held, **{kind: getattr(held, kind) + size})
    return [use for use in totals.values() if use.split or use.whole]


def _shares(run: Any) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    """Path, elements of a device's share, and mesh axes of every parameter."""
    specs = run.rule.task.variable_specs()["params"]
    shapes = jax.eval_shape(lambda: run.rule.init(0)).params
    leaves, _ = jax.tree_util.tree_flatten_with_path(specs, is_leaf=lambda x: isinstance(x, P))
    for (path, spec), shape in zip(leaves, jax.tree.leaves(shapes), strict=True):
        axes = tuple(axis for axis in spec if axis is not None)
        parts = math.prod(run.rule.task.mesh.shape[axis] for axis in axes)
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        yield name, math.prod(shape.shape) // parts, axes
