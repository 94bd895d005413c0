"""Memory and time of a training step on meshes that are not there, from shapes alone.

The step itself is traced for one device of a mesh, with no compiler, so that the estimate is of the
program that runs: its shapes, collectives and rematerialization. What a device does depends on how
data and fsdp share the examples out only by the size of its shares of the weights; so one trace
serves all meshes that agree in the other axes (`Group`), and the shares are counted exactly.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import FrozenConfigDict

from launch.cluster.hardware import Chip
from launch.run import meshes, shapes
from launch.run.build import build
from launch.run.meshes import Sizes
from nn import parallel
from nn.analysis import flops, liveness, plan, program
from nn.analysis.plan import Machine, Prediction
from nn.learning.task import Task
from nn.parallel import schedule
from nn.parallel.weight import is_named

NO_ROOM = "have no room for activations"
LANES = 128  # width of a tile of a TPU's vectors
Group = tuple[int, ...]  # sizes of pipe, expert, context and tensor, and whether fsdp is split


@dataclasses.dataclass(frozen=True)
class Estimate:
    """memory: bytes of a device by kind. mfu: by convention for attention."""

    mesh: Sizes
    memory: Mapping[str, int]
    prediction: Prediction
    mfu: Mapping[str, float]
    sent: Mapping[tuple[str, tuple[str, ...]], float]

    @property
    def bytes(self) -> int:
        return sum(self.memory.values())


@dataclasses.dataclass(frozen=True)
class Traced:
    """What one trace shows. mesh: the one it was made for."""

    mesh: Sizes
    peak: liveness.Peak
    demand: plan.Demand


@dataclasses.dataclass(frozen=True)
class KnownTask(Task):
    """A task whose abstract variables are at hand, so that they are not traced for every mesh."""

    named: Any = None

    def variable_specs(self) -> dict[str, Any]:
        specs: dict[str, Any] = parallel.specs(self.named, self.rules, self.mesh)
        return specs


class Planner:
    """Estimates for one config on one machine."""

    def __init__(self, config: FrozenConfigDict, machine: Machine, devices: int) -> None:
        self.config, self.machine, self.devices = config, machine, devices
        one: Any = meshes.abstract(dict.fromkeys(parallel.AXES, 1))
        run = build(config, mesh=one)
        rule, named = run.rule, run.named
        fields = {f.name: getattr(rule.task, f.name) for f in dataclasses.fields(Task)}
        self.task = KnownTask(**fields, named=named)
        self.rule = dataclasses.replace(rule, task=self.task)
        self.state = jax.eval_shape(lambda: self.rule.init(0))
        self.batch = shapes.batch_of(config, self.task)
        self.judge = meshes.Judge(config, self.task, named)
        self.needed = shapes.model_flops(config, self.task, self.state, self.batch)
        self.traced: dict[Group, Traced | str] = {}  # or why the model refuses
        self.specs: dict[str, Any] = {}

    def on(self, sizes: Sizes) -> Any:
        """The learning rule on a mesh."""
        return dataclasses.replace(self.rule, task=self.judge.on(sizes))

    def trace(self, sizes: Sizes) -> Traced:
        """The step of one device of this mesh. Raises what the model raises for its sizes."""
        jaxpr = jax.make_jaxpr(self.on(sizes).gradients)(self.state, self.batch)
        found = program.of_device(jaxpr)
        return Traced(sizes, liveness.peak(found), plan.demand(found))

    def state_bytes(self, sizes: Sizes) -> dict[str, int]:
        """Of a device, exactly: parameters, optimizer state, the rest of the state, the batch."""
        rule = self.on(sizes)
        # Which axes split what does not depend on their sizes, unless a weight is held whole.
        pattern = str(rule.task.variable_specs())
        if pattern not in self.specs:
            self.specs[pattern] = rule.state_specs()
        specs = self.specs[pattern]
        kinds = {
            "parameters": shapes.local_bytes(self.state.params, specs.params, sizes),
            "optimizer state": shapes.local_bytes(self.state.opt_state, specs.opt_state, sizes),
            "batch": shapes.local_bytes(self.batch, rule.task.batch_specs(self.batch), sizes),
        }
        rest = shapes.local_bytes(self.state, specs, sizes) - sum(list(kinds.values())[:2])
        return kinds | {"other state": rest}

    def parameter_bytes(self, sizes: Sizes) -> int:
        specs = self.on(sizes).task.variable_specs()["params"]
        return shapes.local_bytes(self.state.params, specs, sizes)

    def state_alone(self, sizes: Sizes) -> int:
        """About what parameters and optimizer state take, without a trace."""
        whole = shapes.tree_bytes(self.state)
        params = shapes.tree_bytes(self.state.params)
        return round(self.parameter_bytes(sizes) * whole / params)

    def narrow(self, sizes: Sizes) -> bool:
        """Whether fsdp cuts weights into shares narrower than the tile of a TPU."""
        if parallel.platform_of(None) != "tpu":
            return False
        leaves = jax.tree.leaves(self.task.named["params"], is_leaf=is_named)
        split = (x.value.shape[-1] for x in leaves if self.task.rules.axis(x.names[-1]) == "fsdp")
        return min(split, default=LANES) // sizes["fsdp"] < LANES

    def estimate(self, sizes: Sizes) -> Estimate:
        """Memory and time on one mesh; traces the step unless its group was traced.

        Raises ValueError where the model refuses the sizes of the group.
        """
        traced = self._of_group(sizes)
        asked = rescaled(traced, sizes, narrow=self.narrow(sizes))
        memory = self.state_bytes(sizes)
        memory["gradients"] = memory["parameters"]
        memory |= traced.peak.kinds
        own = self.config.mesh
        idle = 0.0
        if sizes["pipe"] > 1:
            idle = schedule.bubble(own.schedule, sizes["pipe"], own.microbatches, own.rounds)
        found = plan.predict(asked, self.machine, sizes, idle)
        peak = self.machine.peaks[np.dtype(self.task.model.dtype).name]
        mfu = flops.mfus(self.needed, found.step, self.devices, peak)
        return Estimate(sizes, memory, found, mfu, asked.sent)

    def _of_group(self, sizes: Sizes) -> Traced:
        key = group(sizes)
        if key not in self.traced:
            try:
                self.traced[key] = self.trace(reference(sizes, self.judge))
            except ValueError as error:
                self.traced[key] = str(error)
        found = self.traced[key]
        if isinstance(found, str):
            raise ValueError(found)
        return found


def group(sizes: Sizes) -> Group:
    others = (sizes[axis] for axis in ("pipe", "expert", "context", "tensor"))
    return (*others, int(sizes["fsdp"] > 1))


def reference(sizes: Sizes, judge: meshes.Judge) -> Sizes:
    """The mesh of a group that is traced: with data and fsdp both split where that is allowed."""
    shards = sizes["data"] * sizes["fsdp"]
    if sizes["fsdp"] > 1 and shards % 2 == 0 and shards > 2:
        both = sizes | {"data": 2, "fsdp": shards // 2}
        return sizes if judge.refusal(both) else both
    return sizes


def rescaled(traced: Traced, sizes: Sizes, narrow: bool) -> plan.Demand:
    """What the step asks for where data and fsdp share the same examples out differently.

    Sums of gradients over data are of shares of the weights. Where those are narrow, the compiler
    gathers and scatters them as sums, which send twice as much and which nothing runs beside.
    """
    factor = traced.mesh["fsdp"] / sizes["fsdp"]
    sent: dict[tuple[str, tuple[str, ...]], float] = collections.defaultdict(float)
    for (kind, axes), size in traced.demand.sent.items():
        present = tuple(axis for axis in axes if sizes[axis] > 1)
        if present:
            of_share = "data" in axes and "fsdp" not in axes
            kind = "all-reduce" if narrow and present == ("fsdp",) else kind
            sent[kind, present] += size * (factor if of_share else 1)
    return plan.Demand(traced.demand.work, sent)


@dataclasses.dataclass(frozen=True)
class Plan:
    """fitting: best first. refused: reasons of the meshes that were ruled out. left: meshes with
    more devices to an example than was worth looking at. too_large: the only one that was asked
    for, if there is no room for it."""

    fitting: list[Estimate]
    refused: list[str]
    left: int
    traces: int
    too_large: Estimate | None = None


def search(planner: Planner, programs: int) -> Plan:
    """Estimates of all meshes in groups of few devices to an example first.

    It ends after `programs` traces, and before when twice as many devices to an example were slower
    throughout.
    """
    valid: dict[Group, list[Sizes]] = {}
    refused: list[str] = []
    for sizes in meshes.splits(planner.devices, planner.judge.axes):
        why = planner.judge.refusal(sizes)
        if why is None and planner.state_alone(sizes) > planner.machine.memory:
            why = "have no room for parameters and optimizer state"
        if why is None:
            valid.setdefault(group(sizes), []).append(sizes)
        else:
            refused.append(why)
    fitting: list[Estimate] = []
    slower, best, level = 0, math.inf, 1
    order = sorted(valid, key=lambda key: (meshes.degree(valid[key][0]), key))
    for number, key in enumerate(order):
        here = meshes.degree(valid[key][0])
        spent = key not in planner.traced and len(planner.traced) >= programs
        if spent or (here > level and slower >= 2):
            left = sum(len(valid[k]) for k in order[number:])
            return Plan(_ranked(fitting), refused, left, len(planner.traced))
        before = best
        for outcome in _outcomes(planner, valid[key]):
            if isinstance(outcome, str):
                refused.append(outcome)
            else:
                fitting.append(outcome)
                best = min(best, outcome.prediction.step)
        slower = 0 if best < before else slower + (best < math.inf)
        level = here
    return Plan(_ranked(fitting), refused, 0, len(planner.traced))


def only(planner: Planner, sizes: Sizes) -> Plan:
    """The estimate of one mesh. Raises ValueError where the config does not run on it."""
    why = planner.judge.refusal(sizes)
    if why is not None:
        raise ValueError(f"mesh {meshes.as_text(sizes)}: {why}")
    found = planner.estimate(sizes)
    if found.bytes <= planner.machine.memory:
        return Plan([found], [], 0, 1)
    return Plan([], [NO_ROOM], 0, 1, too_large=found)


def _outcomes(planner: Planner, wanted: Iterable[Sizes]) -> Iterator[Estimate | str]:
    for sizes in wanted:
        try:
            found = planner.estimate(sizes)
        except ValueError as error:
            yield str(error)
            continue
        fits = found.bytes <= planner.machine.memory
        yield found if fits else NO_ROOM


def _ranked(found: list[Estimate]) -> list[Estimate]:
    """By time to three digits; of equals, the one with fewer axes and less memory first."""

    def key(e: Estimate) -> tuple[float, int, int]:
        return float(f"{e.prediction.step:.3g}"), sum(n > 1 for n in e.mesh.values()), e.bytes

    return sorted(found, key=key)


def machine(chip: Chip, devices: int) -> Machine:
    """A number of JAX devices of a chip, as near a cube of them as their number allows."""
    peaks = {name: chip.peak(name) for name in ("bfloat16", "float16", "float32")}
    chips = max(devices // chip.devices, 1)
    sides = _sides(min(chips, chip.domain), chip.torus)
    inside = chip.link_bandwidth if chip.torus else chip.links * chip.link_bandwidth
    links = plan.Links(
        sides=sides,
        inside=inside / chip.devices,
        domain=chip.domain * chip.devices,
        outside=None if chip.network_bandwidth is None else chip.network_bandwidth / chip.devices,
        wraps=chip.ring,
    )
    return Machine(
        {name: peak for name, peak in peaks.items() if peak},
        chip.memory_bandwidth / chip.devices,
        chip.memory / chip.devices,
        links,
    )


def _sides(chips: int, dimensions: int) -> tuple[int, ...]:
    """Sides of the torus nearest to a cube, longest first."""
    if not dimensions:
        return ()
    best = (chips, *(1,) * (dimensions - 1))
    for sizes in meshes.splits(chips, parallel.AXES[:dimensions]):
        sides = tuple(sorted((sizes[axis] for axis in parallel.AXES[:dimensions]), reverse=True))
        if max(sides) < max(best):
            best = sides
    return best
