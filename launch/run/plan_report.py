"""What `launch.plan` prints, and the same as JSON."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from launch.cluster import topology
from launch.cluster.hardware import GIB
from launch.run import meshes
from launch.run.planning import Estimate, Plan, Planner
from nn.analysis.liveness import GATHERED, SAVED, WORKING
from nn.analysis.plan import ASSUMPTIONS

ROWS = (
    "parameters",
    "optimizer state",
    "gradients",
    SAVED,
    GATHERED,
    WORKING,
    "batch",
    "other state",
)


def tokens(planner: Planner) -> int:
    """Tokens of a step where examples are tokens, else examples."""
    data = planner.config.data
    return int(data.batch_size * (data.sequence_length if planner.task.objective.SEQUENCE else 1))


def as_json(planner: Planner, plan: Plan, top: int) -> dict[str, Any]:
    return {
        "devices": planner.devices,
        "memory_bytes": planner.machine.memory,
        "model_flops": {"full": planner.needed.total, "causal": planner.needed.causal},
        "meshes": [_row(planner, estimate) for estimate in plan.fitting[:top]],
        "fitting": len(plan.fitting),
        "too_large": None if plan.too_large is None else _row(planner, plan.too_large),
        "refused": meshes.summarize(plan.refused),
        "not_examined": plan.left,
        "assumptions": ASSUMPTIONS,
    }


def _row(planner: Planner, e: Estimate) -> dict[str, Any]:
    seconds = e.prediction.step
    return {
        "mesh": e.mesh,
        "step_s": seconds,
        "binding": e.prediction.binding,
        "seconds": dict(e.prediction.terms),
        "memory": dict(e.memory),
        "memory_total": e.bytes,
        "per_second_per_device": tokens(planner) / seconds / planner.devices,
        "mfu": dict(e.mfu),
        "sent_bytes": {
            f"{kind} {'+'.join(axes)}": size for (kind, axes), size in sorted(e.sent.items())
        },
    }


def text(planner: Planner, plan: Plan, top: int, commands: Sequence[str]) -> str:
    """The table, the best mesh in detail, why others are out, what is assumed, what to run."""
    lines = []
    if plan.fitting:
        lines += _table(planner, plan.fitting[:top])
        lines += ["", *_detail(planner, plan.fitting[0])]
    elif plan.too_large:
        needed, room = plan.too_large.bytes / GIB, planner.machine.memory / GIB
        lines += [f"does not fit: {needed:.1f} GiB of {room:.1f} per device"]
        lines += _detail(planner, plan.too_large)
    else:
        lines += [f"no mesh of {planner.devices} devices fits"]
    if plan.refused:
        lines += ["", f"ruled out: {'; '.join(meshes.summarize(plan.refused))}"]
    if plan.left:
        lines += [
            f"not examined: {plan.left} meshes with more devices to an example "
            "(--programs=N traces more of them)"
        ]
    lines += ["", "assumptions"]
    lines += [f"  {name:<22}{words}" for name, words in ASSUMPTIONS.items()]
    return "\n".join([*lines, *(["", *commands] if plan.fitting else [])])


def _table(planner: Planner, found: Sequence[Estimate]) -> list[str]:
    unit = "tokens" if planner.task.objective.SEQUENCE else "examples"
    width = max(len(meshes.as_text(e.mesh)) for e in found) + 2
    head = f"{'mesh':<{width}}{'step s':>8}{'GiB':>8}{unit + '/s/device':>20}"
    lines = [f"{head}{'MFU full':>10}{'causal':>8}  binding"]
    for e in found:
        rate = tokens(planner) / e.prediction.step / planner.devices
        lines.append(
            f"{meshes.as_text(e.mesh):<{width}}{e.prediction.step:>8.4g}{e.bytes / GIB:>8.1f}"
            f"{rate:>20,.0f}{e.mfu['full']:>10.1%}{e.mfu['causal']:>8.1%}  {e.prediction.binding}"
        )
    return lines


def _detail(planner: Planner, best: Estimate) -> list[str]:
    parts = [
        f"{kind} {best.memory[kind] / GIB:.2f}"
        for kind in ROWS
        if kind in best.memory and best.memory[kind] >= GIB / 200
    ]
    times = [f"{name} {time:.4g}" for name, time in best.prediction.terms.items() if time]
    return [
        f"{meshes.as_text(best.mesh)}, GiB of {planner.machine.memory / GIB:.0f} per device: "
        + ", ".join(parts),
        f"{meshes.as_text(best.mesh)}, seconds: {', '.join(times)}",
    ]


def commands(
    chip: str, planner: Planner, best: Estimate, spec: str, overrides: Sequence[str]
) -> list[str]:
    """How to compile the mesh for the machine, where that is possible, and to train on it."""
    own = planner.config.mesh
    sizes = [f"mesh.{axis}={size}" for axis, size in best.mesh.items() if size != own[axis]]
    axes = tuple(f"mesh.{axis}=" for axis, size in best.mesh.items() if size != own[axis])
    kept = [entry for entry in overrides if not entry.startswith(axes)]
    flags = [f"--config.{entry}" for entry in (*kept, *sizes)]
    words = ["python", "-m", "launch.train", f"--config={spec}", "--workdir=DIR", *flags]
    found = [shlex.join(words)]
    try:
        where = f"--topology={_topology(chip, planner)}"
        words = ["python", "-m", "launch.compile", f"--config={spec}", where, *flags]
    except ValueError as error:
        return [f"# launch.compile cannot: {error}", *found]
    return [shlex.join(words), *found]


def _topology(chip: str, planner: Planner) -> str:
    """The machine as `launch.compile` names it. Raises ValueError where it knows none like it."""
    links, devices = planner.machine.links, planner.devices
    inside = min(links.domain, devices)
    shape = links.sides or (devices // inside, inside)
    found = topology.parse(f"{chip}:{'x'.join(map(str, shape))}")
    if found.size != devices:
        raise ValueError(f"--topology={found.name} has {found.size} devices, not {devices}")
    return found.name
