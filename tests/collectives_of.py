"""Which collectives a program holds: in its jaxpr, by axis, and in its compiled HLO.

Of a jaxpr, those of `jax.shard_map`; the compiler's own, of the partitioner, are in the HLO only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from nn.analysis import flops

KINDS = ("all_gather", "reduce_scatter", "psum", "all_to_all", "ppermute")
HLO_KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8}


class Collective(NamedTuple):
    """One collective operation, as written: a loop's body counts once.

    bytes: the larger of what goes in and what comes out, per device (HLO: what comes out).
    """

    kind: str
    axes: tuple[str, ...]  # () in HLO
    dtype: str
    bytes: int
    loop: bool  # inside the body of a loop


def in_jaxpr(fn: Callable[..., Any], *args: Any) -> list[Collective]:
    """The collectives of `fn`, traced on (possibly abstract) arguments."""
    return list(_walk(jax.make_jaxpr(fn)(*args).jaxpr, False))


def _walk(jaxpr: Any, loop: bool) -> Iterator[Collective]:
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        kind = next((k for k in KINDS if name == k or name.startswith(f"{k}_invar")), None)
        if kind is not None:
            axes = eqn.params["axes" if kind == "psum" else "axis_name"]
            axes = (axes,) if isinstance(axes, str) else tuple(axes)
            for x, y in zip(eqn.invars, eqn.outvars, strict=True):
                size = max(math.prod(v.aval.shape) for v in (x, y)) * x.aval.dtype.itemsize
                yield Collective(kind, axes, x.aval.dtype.name, size, loop)
        for inner in flops.jaxprs(eqn.params):
            yield from _walk(inner, loop or name in ("scan", "while"))


def in_hlo(text: str) -> list[Collective]:
    """The collectives of a compiled module, `compiled.as_text()`."""
    found: dict[str, list[Collective]] = {}
    calls: dict[str, set[str]] = {}
    bodies: set[str] = set()
    name = ""
    for line in text.splitlines():
        if line and not line[0].isspace() and line.rstrip().endswith("{"):
            name = re.split(r"[\s(]", line.removeprefix("ENTRY ").lstrip("%"))[0]
            found[name], calls[name] = [], set()
        calls.setdefault(name, set()).update(re.findall(r"(?:=|\{|, )%([\w.-]+)", line))
        bodies.update(re.findall(r"body=%?([\w.-]+)", line))
        op = re.search(r" = (.*?) ([a-z-]+?)(?:-start)?\(", line)
        if op and op[2] in HLO_KINDS:
            for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", op[1]):
                size = math.prod(int(n) for n in shape.split(",") if n) * SIZES[dtype]
                found[name].append(Collective(op[2], (), dtype, size, False))
    inside = _reachable(bodies, calls)
    return [
        c._replace(loop=computation in inside) for computation in found for c in found[computation]
    ]


def _reachable(start: set[str], calls: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    todo = list(start)
    while todo:
        name = todo.pop()
        if name in calls and name not in seen:
            seen.add(name)
            todo += calls[name]
    return seen
