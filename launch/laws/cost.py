"""What a plan takes on a machine that is not there: time, memory and money of every cell.

Each model's step is traced and laid out on the machine's best mesh (launch/run/planning.py): the
time is a roofline, which no run beats. A share of the peak that was measured (`mfu`) takes its
place where one is given.
"""

from __future__ import annotations

import dataclasses

from launch.cluster.hardware import Chip
from launch.laws.planner import Cell, Plan
from launch.run import config as configs
from launch.run import meshes, planning
from nn.parallel.mesh import compiled_for

PROGRAMS = 3  # steps to trace per model: meshes with few devices to an example come first
HOUR = 3600.0


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one cell. mesh: as text; memory: bytes of a device, of its limit `room`."""

    seconds: float
    mesh: str
    memory: int
    room: float
    mfu: float

    @property
    def hours(self) -> float:
        return self.seconds / HOUR


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a model."""

    seconds: float
    mesh: str
    memory: int
    needed: float  # FLOPs


class Costs:
    """Costs on a number of devices of a chip; models are laid out once each.

    Raises ValueError where no mesh has room for a model.
    """

    def __init__(
        self, spec: str, overrides: list[str], chip: Chip, devices: int, mfu: float | None = None
    ) -> None:
        self.spec, self.overrides, self.chip = spec, overrides, chip
        self.devices, self.mfu = devices, mfu
        self.machine = planning.machine(chip, devices)
        self._steps: dict[tuple[str, ...], Step] = {}

    def of(self, cell: Cell) -> Cost:
        sized = {**cell.model.set, "data.batch_size": cell.batch_size}
        key = tuple(configs.overrides_of(sized))
        if key not in self._steps:
            self._steps[key] = self._step(key)
        step = self._steps[key]
        peak = max(self.machine.peaks.values()) * self.devices
        seconds = step.seconds * cell.steps
        if self.mfu is not None:
            seconds = cell.flops / (peak * self.mfu)
        used = cell.flops / seconds / peak
        return Cost(seconds, step.mesh, step.memory, self.machine.memory, used)

    def all(self, plan: Plan) -> list[Cost]:
        return [self.of(cell) for cell in plan.cells]

    def _step(self, key: tuple[str, ...]) -> Step:
        policy = "precision.policy=bfloat16"
        config = configs.load(self.spec, [policy, *self.overrides, *key])
        with compiled_for(self.chip.platform):
            planner = planning.Planner(config, self.machine, self.devices)
            found = planning.search(planner, PROGRAMS)
        if not found.fitting:
            reasons = "; ".join(dict.fromkeys(found.refused)) or "no mesh was tried"
            raise ValueError(
                f"{' '.join(key)}: no mesh of {self.devices} devices has room: {reasons}; nearest: "
                f"--devices={2 * self.devices}"
            )
        best = found.fitting[0]
        needed = float(planner.needed.total)
        return Step(best.prediction.step, meshes.as_text(best.mesh), best.bytes, needed)


def totals(costs: list[Cost], devices: int, price: float | None) -> str:
    """A line: hours of the machine if one run follows another, device hours, and money."""
    hours = sum(cost.hours for cost in costs)
    line = f"{hours:.3g} hours of {devices} devices, {hours * devices:.3g} device hours"
    return line if price is None else f"{line}, {hours * devices * price:,.2f} at {price:g} an hour"
