"""What a compiled program sends between devices: kind, mesh axes, counts, bytes, overlap.

Bytes are those that one device sends in one step over the links, by the algorithms that move the
least (n devices in a group, S bytes of the whole array): S (n - 1) / n in an all-gather, a
reduce-scatter and an all-to-all, twice that in an all-reduce, S in a permutation.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from launch.run.hlo import Instruction, Module, shape_bytes

KINDS = (
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)
OTHER = "other"  # groups that are those of no set of mesh axes


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the program, as often as it runs.

    axes: the mesh axes over which it communicates; (OTHER,) where its groups are not those of any.
    group: devices that take part together. times: runs per step.
    bytes: that a device sends in one run. overlapped: a matrix product runs between its start and
      its end.
    """

    kind: str
    axes: tuple[str, ...]
    group: int
    times: int
    bytes: int
    overlapped: bool


def find(module: Module, mesh: Mapping[str, int]) -> list[Collective]:
    """Every collective that a program runs on a mesh (axis -> size, the first the slowest)."""
    found = []
    for name, times in module.counts.items():
        for index, instruction in enumerate(module.computations[name]):
            kind = kind_of(instruction)
            if kind is None or _repeats(module, name, instruction):
                continue
            shape = _result(module.computations[name], index)
            groups = parse_groups(instruction.attributes, math.prod(mesh.values()))
            size = groups.shape[1]
            if kind == "collective-permute":
                groups = parse_pairs(instruction.attributes)
                size = len(np.unique(groups))
            axes = axes_of(groups, mesh, pairs=kind == "collective-permute")
            sent = bytes_sent(kind, shape_bytes(shape), size)
            if kind == "all-reduce" and _scatters(module, name, instruction):
                kind, sent = "reduce-scatter", sent // 2
            overlapped = _overlapped(module, name, index)
            if axes:
                found.append(Collective(kind, axes, size, times, sent, overlapped))
    return found


def kind_of(instruction: Instruction) -> str | None:
    """The kind of a collective, of its start where it is in two halves; None for anything else."""
    kind = instruction.opcode.removesuffix("-start")
    return kind if kind in KINDS else None


def _scatters(module: Module, name: str, instruction: Instruction) -> bool:
    """Whether it is an all-reduce in name only: inside a fusion that keeps a slice of it.

    So libtpu writes some reduce-scatters (the emitter `AllReduceScatterFusion`). An all-reduce that
    is sliced by another instruction is one: all of its result is there.
    """
    users = [i for i in module.computations[name] if instruction.name in i.operands]
    return name in module.fused and bool(users) and all(i.opcode == "dynamic-slice" for i in users)


def bytes_sent(kind: str, result: int, group: int) -> int:
    """Bytes that one device sends for a collective with a result of `result` bytes per device."""
    share = (group - 1) / group
    if kind == "all-reduce":
        return round(2 * share * result)
    if kind == "reduce-scatter":
        return result * (group - 1)
    return result if kind.startswith("collective") else round(share * result)


def summarize(found: Sequence[Collective]) -> list[dict[str, object]]:
    """One row per axes and kind: counts and bytes per device and step, and what is overlapped."""
    rows: dict[tuple[tuple[str, ...], str], list[Collective]] = collections.defaultdict(list)
    for collective in found:
        rows[collective.axes, collective.kind].append(collective)
    return [
        {
            "axes": list(axes),
            "kind": kind,
            "group": max(c.group for c in group),
            "count": sum(c.times for c in group),
            "bytes": sum(c.times * c.bytes for c in group),
            "overlapped_count": sum(c.times for c in group if c.overlapped),
            "overlapped_bytes": sum(c.times * c.bytes for c in group if c.overlapped),
        }
        for (axes, kind), group in sorted(rows.items())
    ]


def parse_groups(attributes: str, devices: int) -> np.ndarray:
    """`replica_groups` as (groups, devices of each); all devices are one group where it is empty.

    XLA writes them out, as reshaped and transposed ranges `[2,4]<=[4,2]T(1,0)`, or as axes of a
    mesh of its own: `mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}`.
    """
    if named := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^)]*\)?)\))? \{([^}]*)\}", attributes
    ):
        return _mesh_groups(named[1], named[2] or "", named[3])
    if ranges := re.search(
        r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes
    ):
        return _iota(ranges[2], ranges[3]).reshape(_numbers(ranges[1]))
    listed = re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", attributes)
    rows = re.findall(r"\{([\d,]+)\}", listed[1]) if listed else []
    if not rows:
        return np.arange(devices)[None]
    return np.asarray([_numbers(row) for row in rows])


def parse_pairs(attributes: str) -> np.ndarray:
    """`source_target_pairs` as (pairs, 2)."""
    listed = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes)
    pairs = re.findall(r"\{(\d+),(\d+)\}", listed[1]) if listed else []
    return np.asarray(pairs, np.int64).reshape(-1, 2)


def _numbers(text: str) -> list[int]:
    return [int(x) for x in text.split(",") if x]


def _iota(shape: str, permutation: str | None) -> np.ndarray:
    sizes = _numbers(shape)
    grid = np.arange(math.prod(sizes)).reshape(sizes)
    return grid.transpose(_numbers(permutation)) if permutation else grid


def _mesh_groups(axes: str, ids: str, chosen: str) -> np.ndarray:
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    order = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", ids)
    flat = _iota(order[1], order[2]) if order else np.arange(math.prod(sizes.values()))
    grid = flat.reshape(tuple(sizes.values()))
    names = re.findall(r"'([^']+)'", chosen)
    moved = np.moveaxis(grid, [list(sizes).index(n) for n in names], range(-len(names), 0))
    return moved.reshape(-1, math.prod(sizes[n] for n in names))


def axes_of(groups: np.ndarray, mesh: Mapping[str, int], pairs: bool = False) -> tuple[str, ...]:
    """The mesh axes along which the devices of each group differ.

    groups: numbers of devices in the order of the mesh, (groups, devices of each).
    pairs: each row is a source and its target rather than a group that must be complete.
    Returns (OTHER,) where no set of axes makes these groups, () where nothing is sent.
    """
    sizes = tuple(mesh.values())
    where = np.stack(np.unravel_index(groups, sizes), axis=-1)  # (groups, devices of each, axes)
    differ = (where != where[:, :1]).any(axis=(0, 1))
    axes = tuple(axis for axis, d in zip(mesh, differ, strict=True) if d)
    if pairs or not axes:
        return axes
    # Complete groups: as many devices as the axes have, and each axis sees all of its places.
    expected = math.prod(mesh[axis] for axis in axes)
    return axes if groups.shape[1] == expected else (OTHER,)


def _result(computation: Sequence[Instruction], index: int) -> str:
    """The shape of what a collective makes: of its second half where it is in two."""
    instruction = computation[index]
    if not instruction.opcode.endswith("-start"):
        return instruction.shape
    return computation[_end(computation, index)].shape


def _end(computation: Sequence[Instruction], index: int) -> int:
    """Where the second half of a collective is."""
    name = computation[index].name
    for later, instruction in enumerate(computation[index + 1 :], index + 1):
        if name in instruction.operands and instruction.opcode.endswith("-done"):
            return later
        if name in instruction.operands and instruction.opcode.endswith("-update"):
            name = instruction.name
    raise ValueError(f"the collective {name} has a start and no end")


def _chain(instruction: Instruction) -> str | None:
    """The mark that the pieces of one asynchronous collective fusion of a TPU share."""
    found = re.search(r'chain_id="(\d+)"', instruction.attributes)
    return found[1] if found else None


def _repeats(module: Module, name: str, instruction: Instruction) -> bool:
    """Whether it is a further piece of a collective that is counted at its first piece.

    An asynchronous collective fusion of a TPU starts in one fusion, goes on beside the products of
    others, and ends in a last one; each repeats the collective.
    """
    if _chain(instruction) is None:
        return False
    return not any("AsyncCollectiveStart" in i.attributes for i in module.computations[name])


def _overlapped(module: Module, name: str, index: int) -> bool:
    """Whether a matrix product or a loop runs while the collective is on its way."""
    computation = module.computations[name]
    instruction = computation[index]
    if instruction.opcode.endswith("-start"):
        between = computation[index + 1 : _end(computation, index)]
        return any(i.opcode == "while" or module.multiplies(i) for i in between)
    if (chain := _chain(instruction)) is not None:
        return any(
            any(module.multiplies(i) for i in piece)
            for other, piece in module.computations.items()
            if other != name and any(_chain(i) == chain for i in piece)
        )
    return _wrapped(module, name)


def _wrapped(module: Module, name: str) -> bool:
    """Whether the computation is what an `async-start` runs, with a product before its end."""
    for caller, start in _starts(module):
        computation = module.computations[caller]
        if name in computation[start].called("calls"):
            between = computation[start + 1 : _end(computation, start)]
            return any(i.opcode == "while" or module.multiplies(i) for i in between)
    return False


def _starts(module: Module) -> Iterator[tuple[str, int]]:
    for name, body in module.computations.items():
        yield from ((name, k) for k, i in enumerate(body) if i.opcode == "async-start")
