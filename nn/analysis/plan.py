"""What one step asks of a device, and how long that takes on a given machine, by roofline.

`demand` reads the program of one device: products, memory traffic and what every collective sends.
`predict` turns it into seconds. What each term assumes is in `ASSUMPTIONS`.

The costs of collectives are those of rings on a torus (Austin et al. 2025, How to Scale Your Model,
chapter 3) and of a switch with slower links behind it.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nn.analysis import flops
from nn.analysis.collectives import KINDS, axes_of
from nn.analysis.liveness import FUSED, VIEWS, Storage
from nn.analysis.program import LOOPS, Op, Program

# Axes whose collectives go on beside the products; the others are waited for, and so are weights
# that are gathered as sums.
HIDDEN = frozenset(("data", "fsdp", "context"))
WAITED = ("all-reduce", "fsdp")

ASSUMPTIONS = {
    "compute": "products at the chip's stated peak of their type; FLOPs of the traced step, "
    "what is computed again included",
    "memory": "products and fused groups whose traffic takes longer than their FLOPs",
    "fsdp, data, context": "sent beside the computation, one after another",
    "tensor, expert, pipe": "waited for, as is fsdp where it cuts weights below a TPU's tile",
    "bubble": "the share of the ticks in which a stage of the pipeline has no work",
    "links": "mesh axes lie along the machine's links in their order, tensor on the nearest",
}


@dataclasses.dataclass(frozen=True)
class Links:
    """How devices are joined.

    sides: of the torus, slowest first; () where a switch joins the devices of a domain.
    inside: bytes/s one way: of one link of a torus, of all links of a device to a switch.
    domain: devices that these links join. outside: bytes/s of a device to other domains, or None.
    wraps: the least side that is closed to a ring.
    """

    sides: tuple[int, ...]
    inside: float
    domain: int
    outside: float | None
    wraps: int = 4


@dataclasses.dataclass(frozen=True)
class Machine:
    """peaks: FLOP/s of a device by the name of a dtype; bandwidth: bytes/s of its memory."""

    peaks: Mapping[str, float]
    bandwidth: float
    memory: float  # bytes
    links: Links


@dataclasses.dataclass
class Demand:
    """Of one device in one step.

    work: by dtype of the products, rows of FLOPs and bytes of one operation, times it is done.
    sent: (kind, axes) -> bytes of what is gathered, summed or passed on, in all.
    """

    work: dict[str, list[tuple[float, float]]]
    sent: dict[tuple[str, tuple[str, ...]], float]

    @property
    def flops(self) -> float:
        return sum(row[0] for rows in self.work.values() for row in rows)

    @property
    def traffic(self) -> float:
        """Bytes of memory read and written."""
        return sum(row[1] for rows in self.work.values() for row in rows)


def demand(program: Program) -> Demand:
    """What the program of one device asks for."""
    found = Demand(collections.defaultdict(list), collections.defaultdict(float))
    _add(found, program, 1, program.outs)
    return found


def _add(found: Demand, program: Program, times: int, wanted: Sequence[Any]) -> None:
    storage = Storage(program, [v for v in wanted if v is not None])
    for op in program.ops:
        if op.name in KINDS:
            _add_sent(found, op, times)
        elif op.bodies:
            loop = op.name in LOOPS
            dearest = max(op.bodies, key=lambda body: len(body.ops))
            outs = dearest.outs[: op.carry] if loop else dearest.outs
            _add(found, dearest, times * op.times, outs)
        elif op.name not in VIEWS and any(out in storage.stored for out in op.outs):
            count = flops.of_equation(op.eqn, op.scope).total
            moved = sum(storage.sources(op).values())
            moved += sum(out.bytes for out in op.outs if out in storage.stored)
            found.work[_dtype(op)].append((times * count, times * moved))


def _dtype(op: Op) -> str:
    """Of the operands of a product."""
    return op.ins[0].dtype.name if op.ins and op.name not in FUSED else "float32"


def _add_sent(found: Demand, op: Op, times: int) -> None:
    kind, axes = KINDS[op.name], axes_of(op.eqn.params)
    whole = op.outs if kind == "all-gather" else op.ins
    found.sent[kind, axes] += times * sum(v.bytes for v in whole)


def seconds(
    kind: str, axes: Sequence[str], size: float, mesh: Mapping[str, int], links: Links
) -> float:
    """Time of a collective of `size` bytes: those gathered, summed or passed on by a device.

    Args:
      mesh: axis -> size, slow links first; devices lie in this order along the machine.
    """
    names = list(mesh)
    n = math.prod(mesh[axis] for axis in axes)
    if n == 1 or not size:
        return 0.0
    stride = min(math.prod(mesh[a] for a in names[names.index(axis) + 1 :]) for axis in axes)
    share = {"permute": 1.0, "all-reduce": 2 * (n - 1) / n}
    sent = size * (share[kind] if kind in share else (n - 1) / n)
    near = max(min(links.domain // stride, n), 1)  # of the group, those in one domain
    far = 0.0
    if near < n:
        if links.outside is None:
            raise ValueError(
                f"no bandwidth between domains of {links.domain} devices is known; "
                f"nearest number of devices: {links.domain}"
            )
        crossing = 1.0 if kind == "permute" else (n - near) / (n - 1) / near
        far = sent * crossing / links.outside
    if near == 1:
        return far
    if not links.sides:
        return max(sent / links.inside, far)
    ways, longest = _ways(stride, near, links)
    if kind == "permute":
        return max(sent / links.inside, far)
    # Bytes of an all-to-all go a quarter of the way round a ring (half of a line).
    detour = max(longest / 4, 1.0) if kind == "all-to-all" else 1.0
    return max(sent * detour / (ways * links.inside), far)


def _ways(stride: int, n: int, links: Links) -> tuple[int, int]:
    """Links of a device that a group of `n` uses, `stride` apart, and its longest side."""
    inner, ways, longest = 1, 0, 1
    for side in reversed(links.sides):
        held = min(inner * side, stride * n) // max(inner, stride)
        if held > 1:
            ways += 2 if held == side >= links.wraps else 1
            longest = max(longest, held)
        inner *= side
    return max(ways, 1), longest


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Seconds of one step.

    terms: compute, memory, bubble, and one per group of axes.
    """

    step: float
    terms: Mapping[str, float]
    binding: str


def predict(
    asked: Demand, machine: Machine, mesh: Mapping[str, int], idle: float = 0.0
) -> Prediction:
    """Args: idle: the share of the device's work that is done for nothing in a pipeline."""
    terms = dict.fromkeys(("compute", "memory", "bubble"), 0.0)
    for dtype, rows in asked.work.items():
        peak = machine.peaks[dtype] if dtype in machine.peaks else machine.peaks["float32"]
        table = np.asarray(rows)
        products, moves = table[:, 0] / peak, table[:, 1] / machine.bandwidth
        terms["compute"] += float(products[products >= moves].sum())
        terms["memory"] += float(moves[products < moves].sum())
    busy = terms["compute"] + terms["memory"]
    terms["bubble"] = busy * idle
    for name in ("compute", "memory"):
        terms[name] *= 1 - idle
    hidden = exposed = 0.0
    for (kind, axes), size in asked.sent.items():
        time = seconds(kind, axes, size, mesh, machine.links)
        name = "+".join(axis for axis in axes if mesh[axis] > 1)
        if not time:
            continue
        terms[name] = (terms[name] if name in terms else 0.0) + time
        if set(name.split("+")) <= HIDDEN and (kind, name) != WAITED:
            hidden += time
        else:
            exposed += time
    beside = [name for name in terms if set(name.split("+")) <= HIDDEN]
    waits = [name for name in terms if name not in beside]
    of = beside if hidden > busy and hidden > exposed else waits
    return Prediction(max(busy, hidden) + exposed, terms, max(of, key=terms.__getitem__))
