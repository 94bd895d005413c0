"""What `launch.compile` finds out, as one JSON object, and as text."""

from __future__ import annotations

from typing import Any

import numpy as np
from ml_collections import FrozenConfigDict

from launch.cluster.hardware import TERA, Chip
from launch.cluster.topology import Topology
from launch.run import aot, environment, hlo, hlo_collectives, meshes, roofline, shapes
from launch.run import config as configs
from launch.run.aot import Program
from launch.run.build import Run
from nn.learning.task import Task

SCHEMA = 1  # of the JSON; a change of a key's meaning raises it

KINDS = (
    *("parameters", "optimizer_state", "batch", "other_arguments", "padding", "output"),
    *("temporaries", "code"),
)


def report(
    command: list[str], run: Run, topology: Topology, chip: Chip | None, options: dict[str, Any]
) -> dict[str, Any]:
    """Compile the step and measure what came out.

    chip: whose memory and peaks to compare with; None for simulated CPUs, which have no roofline.
    Raises ValueError for a compiler option that does not exist.
    """
    batch = aot.abstract_batch(run)
    task = run.rule.task
    executed, model = aot.executed_flops(run, batch), aot.model_flops(run, batch)
    program = aot.compile_step(run, batch, options)
    memory = aot.memory(run, batch, program)
    limit = None if chip is None else round(chip.memory / chip.devices)
    fits = program.compiled is not None and (limit is None or memory["needed"] <= limit)
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "command": command,
        "config_digest": configs.digest(run.config),
        "topology": {"name": topology.name, "devices": task.mesh.size, "memory": limit},
        "mesh": dict(task.mesh.shape),
        "batch": _batch(run.config, task),
        "dtype": np.dtype(task.model.dtype).name,
        "versions": environment.versions(),
        "compiler_options": options,
        "seconds": program.seconds,
        "fits": fits,
        "problem": program.problem[:300],
        "memory": memory,
        "flops": {
            "executed": executed.total,
            "executed_per_device": executed.total // task.mesh.size,
            "model_attention_full": model.total,
            "model_attention_causal": round(model.causal),
        },
        "parameter_traffic": roofline.parameter_traffic(run),
    }
    if program.compiled is not None:
        found |= _measured(run, topology, chip, program, executed, model)
    return found


def _batch(config: FrozenConfigDict, task: Task) -> dict[str, Any]:
    found = {"examples": config.data.batch_size, "examples_per_device": 0.0}
    found["examples_per_device"] = config.data.batch_size / task.mesh.size
    if tokens := shapes.tokens(config, task):
        found["sequence_length"] = config.data.sequence_length
        found["tokens"] = tokens
    return found


def _measured(
    run: Run, topology: Topology, chip: Chip | None, program: Program, executed: Any, model: Any
) -> dict[str, Any]:
    """What the text of the compiled program says."""
    task = run.rule.task
    module = hlo.parse(program.compiled.as_text())
    rows = hlo_collectives.summarize(hlo_collectives.find(module, dict(task.mesh.shape)))
    traffic = hlo.memory_traffic(module)
    found: dict[str, Any] = {
        "hbm_bytes": traffic,
        "intensity": executed.total / task.mesh.size / max(traffic, 1),
        "collectives": rows,
    }
    if chip is not None and topology.chip is not None:
        roofline.add_times(rows, chip, topology, task.mesh)
        found["roofline"] = roofline.roofline(
            executed, model, traffic, rows, chip, task.mesh.size, task.model.dtype
        )
    return found


def size(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024 or unit == "GiB":
            return f"{count:.4g} {unit}"
        count /= 1024
    raise AssertionError


def text(found: dict[str, Any]) -> str:
    """The report for people."""
    place, mesh = found["topology"], found["mesh"]
    versions = found["versions"]
    known = (f"{n} {versions[n]}" for n in ("jax", "jaxlib", "libtpu") if n in versions)
    seconds = " ".join(f"{name} {value:.1f} s" for name, value in found["seconds"].items())
    lines = [
        f"{place['name']}: {place['devices']} devices, {meshes.as_text(mesh)}, {found['dtype']}",
        f"batch: {', '.join(f'{v:g} {k}' for k, v in found['batch'].items())}",
        f"compiled with {', '.join(known)}: {seconds}",
        *_fit(found),
        *_memory(found["memory"]),
        *_flops(found),
    ]
    if "collectives" in found:
        lines += _collectives(found)
    lines += _formulas(found)
    if "roofline" in found:
        lines += _roofline(found)
    return "\n".join(lines)


def _fit(found: dict[str, Any]) -> list[str]:
    limit, needed = found["topology"]["memory"], found["memory"]["needed"]
    if limit is None:
        return [f"memory: {size(needed)} per device"]
    verdict = "fits" if found["fits"] else "DOES NOT FIT"
    lines = [f"{verdict}: {size(needed)} of {size(limit)} per device"]
    return lines + ([f"  {found['problem']}"] if found["problem"] else [])


def _memory(memory: dict[str, int]) -> list[str]:
    return [
        f"  {kind.replace('_', ' '):<17}{size(memory[kind]):>12}"
        for kind in (*KINDS, "total", "peak")
        if kind in memory
    ]


def _flops(found: dict[str, Any]) -> list[str]:
    flops = found["flops"]
    lines = [
        f"FLOPs per step: {flops['executed'] / TERA:.4g} T executed, "
        f"{flops['executed_per_device'] / TERA:.4g} T per device; the model needs "
        f"{flops['model_attention_full'] / TERA:.4g} T with attention in full, "
        f"{flops['model_attention_causal'] / TERA:.4g} T with half of it"
    ]
    if "hbm_bytes" in found:
        lines.append(
            f"memory traffic per device: {size(found['hbm_bytes'])}, "
            f"{found['intensity']:.4g} FLOPs per byte"
        )
    return lines


def _collectives(found: dict[str, Any]) -> list[str]:
    lines = ["collectives per step: axes, kind, count, sent per device, of it beside products"]
    for row in found["collectives"]:
        share = row["overlapped_bytes"] / max(row["bytes"], 1)
        time = f"{row['seconds'] * 1e3:9.2f} ms" if "seconds" in row else ""
        lines.append(
            f"  {'+'.join(row['axes']):<20}{row['kind']:<19}{row['count']:>6}"
            f"{size(row['bytes']):>13}{share:7.0%}{time}"
        )
    return lines


def _formulas(found: dict[str, Any]) -> list[str]:
    """The traffic of the parameters alone, with what was compiled over the same axes beside it.

    A TPU makes some reduce-scatters an all-reduce of which each device keeps its part; half of the
    bytes of an all-reduce are those of a reduce-scatter.
    """
    if found["mesh"]["pipe"] > 1:
        return ["  parameters: no formula, the stages of a pipeline gather them at every tick"]
    lines = []
    compiled = found["collectives"] if "collectives" in found else []
    for row in found["parameter_traffic"]:
        sent = {c["kind"]: c["bytes"] for c in compiled if c["axes"] == row["axes"]}
        note = ""
        if row["kind"] in sent:
            note = f"; compiled: {size(sent[row['kind']])}"
        if row["kind"] == "reduce-scatter" and "all-reduce" in sent:
            note += f" and, as all-reduces, 2 x {size(sent['all-reduce'] / 2)}"
        lines.append(
            f"  parameters, {'+'.join(row['axes'])} {row['kind']}: {row['formula']} = "
            f"{size(row['bytes'])}{note}"
        )
    return lines


def _roofline(found: dict[str, Any]) -> list[str]:
    line = found["roofline"]
    terms = ", ".join(f"{name} {value * 1e3:.1f}" for name, value in line["seconds"].items())
    lines = [f"roofline in ms: {terms}; bound by {line['bound']}"]
    for name, key, mfu in (
        ("all of it at once", "step_s", "mfu"),
        ("waiting for collectives with no product beside them", "exposed_s", "mfu_exposed"),
    ):
        tokens = ""
        if "tokens" in found["batch"]:
            each = found["batch"]["tokens"] / line[key] / found["topology"]["devices"]
            tokens = f", {each:.0f} tokens/s per device"
        share = line[mfu]
        lines.append(
            f"  {name}: {line[key] * 1e3:.1f} ms a step{tokens}, MFU {share['full']:.1%} with "
            f"attention in full, {share['causal']:.1%} with half of it, of "
            f"{line['peak_flops'] / TERA:.0f} TFLOP/s"
        )
    return lines
