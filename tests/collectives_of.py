"""The collectives of a program, array by array: as they are written, and as they are compiled.

The compiler's own, those of its partitioner, are in the compiled text only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from launch.run import hlo
from launch.run.hlo_collectives import kind_of
from nn.analysis import collectives


class Moved(NamedTuple):
    """One array that a collective moves; axes are () in compiled text."""

    kind: str
    axes: tuple[str, ...]
    dtype: str
    bytes: int
    loop: bool  # more than once in a call of the program


def in_jaxpr(fn: Callable[..., Any], *args: Any) -> list[Moved]:
    """Of `fn`, traced on (possibly abstract) arguments."""
    found = collectives.each(jax.make_jaxpr(fn)(*args).jaxpr)
    return [Moved(c.kind, c.axes, *array, c.times > 1) for c in found for array in c.arrays]


def in_hlo(text: str) -> list[Moved]:
    """Of a compiled module, `compiled.as_text()`."""
    return list(_compiled(hlo.parse(text)))


def _compiled(module: hlo.Module) -> Iterator[Moved]:
    for name, times in module.counts.items():
        for instruction in module.computations[name]:
            kind = kind_of(instruction)
            for array in hlo.ARRAY.finditer(instruction.shape) if kind else ():
                yield Moved(kind, (), array[1], hlo.shape_bytes(array[0]), times > 1)
