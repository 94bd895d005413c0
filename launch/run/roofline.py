"""How fast a compiled step can be at best, and what the parameters alone make it send.

A roofline (Williams et al. 2009): the step takes as long as the slowest of its products at the
peak, its memory traffic at the bandwidth, and the collectives over each axis on their links, if
all go on at once. `exposed_s` is what is left of that hope: collectives with no product beside
them are waited for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

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


def parameter_traffic(run: Any) -> list[dict[str, Any]]:
    """What parameters and their gradients alone make a device send in a step, as formulas.

    A weight that fsdp splits is gathered before it is used, again before the backward pass where
    blocks are computed twice, and its gradient reduce-scattered, all in the compute dtype; its
    share is then summed over data. What fsdp does not split is summed over data and fsdp.
    """
    task, config = run.rule.task, run.config
    mesh = dict(task.mesh.shape)
    f, d = mesh["fsdp"], mesh["data"]
    width = np.dtype(task.model.dtype).itemsize
    again = "remat" in config.model and config.model.remat != "none"
    gathers = (2 if again else 1) * config.rule.accumulate
    shares = list(_shares(run))
    split = sum(size for size, axes in shares if "fsdp" in axes)
    rows = []
    if f > 1:
        for kind, times in (("all-gather", gathers), ("reduce-scatter", config.rule.accumulate)):
            rows.append(
                {
                    "axes": ["fsdp"],
                    "kind": kind,
                    "formula": f"{times} x {width} bytes x {split * f} weights x ({f} - 1) / {f}",
                    "bytes": times * width * split * (f - 1),
                }
            )
    if d > 1:
        rows.append(
            {
                "axes": ["data"],
                "kind": "all-reduce",
                "formula": f"2 x {width} bytes x {split} weights of a share x ({d} - 1) / {d}",
                "bytes": round(2 * width * split * (d - 1) / d),
            }
        )
    rest, n = sum(size for size, axes in shares if "fsdp" not in axes), f * d
    if rest and n > 1:
        rows.append(
            {
                "axes": [axis for axis in BATCH_AXES if mesh[axis] > 1],
                "kind": "all-reduce",
                "formula": f"2 x 4 bytes x {rest} weights that are whole x ({n} - 1) / {n}",
                "bytes": round(8 * rest * (n - 1) / n),
            }
        )
    return rows


def _shares(run: Any) -> Any:
    """Elements of a device's share of every parameter, and the mesh axes that split it."""
    specs = run.rule.task.variable_specs()["params"]
    shapes = jax.eval_shape(lambda: run.rule.init(0)).params
    leaves = jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec))
    for spec, shape in zip(leaves, jax.tree.leaves(shapes), strict=True):
        axes = tuple(axis for axis in spec if axis is not None)
        parts = math.prod(run.rule.task.mesh.shape[axis] for axis in axes)
        yield math.prod(shape.shape) // parts, axes
