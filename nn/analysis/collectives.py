"""Which collectives a step asks for, counted on its jaxpr: how often, over which axes, how much.

The count is of the program as it is written, before a compiler merges, splits or removes any of
them; a collective in a loop counts as often as the loop runs. A value that is typed as varying over
an axis and was not before costs nothing; its transpose, the sum of gradients, is counted.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.extend import core

KINDS = {
    "psum": "all_reduce",
    "psum_invariant": "all_reduce",
    "pmax": "all_reduce_max",
    "pmin": "all_reduce_min",
    "all_gather": "all_gather",
    "all_gather_invariant": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "ppermute": "permute",
    "all_to_all": "all_to_all",
    "ragged_all_to_all": "ragged_all_to_all",
}


class Kind(NamedTuple):
    """A sort of collective over some mesh axes; `str()` is "all_gather fsdp"."""

    name: str
    axes: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} {' x '.join(self.axes)}"


class Traffic(NamedTuple):
    """operations, and the bytes that one device puts into all of them."""

    operations: int
    bytes: int


def count(fn: Callable[..., Any], *args: Any) -> dict[Kind, Traffic]:
    """Collectives of `fn(*args)`; args may be `jax.ShapeDtypeStruct`s, nothing is computed.

    The body of a while loop, whose trip count is unknown, counts once; of the branches of a
    conditional all count.
    """
    return count_jaxpr(jax.make_jaxpr(fn)(*args).jaxpr)


def count_jaxpr(jaxpr: Any) -> dict[Kind, Traffic]:
    """`count` of a function that is traced already."""
    counts: collections.Counter[Kind] = collections.Counter()
    sizes: collections.Counter[Kind] = collections.Counter()
    for eqn, times in _equations(jaxpr, 1):
        kind = _kind(eqn)
        if kind is not None:
            counts[kind] += times
            sizes[kind] += times * sum(_bytes(v.aval) for v in eqn.invars)
    return {kind: Traffic(counts[kind], sizes[kind]) for kind in sorted(counts)}


def _kind(eqn: Any) -> Kind | None:
    if eqn.primitive.name not in KINDS:
        return None
    axes = eqn.params["axes"] if "axes" in eqn.params else eqn.params["axis_name"]
    names = axes if isinstance(axes, tuple) else (axes,)
    return Kind(KINDS[eqn.primitive.name], tuple(names)) if names else None


def _bytes(aval: Any) -> int:
    return math.prod(aval.shape) * aval.dtype.itemsize


def _equations(jaxpr: Any, times: int) -> Iterator[tuple[Any, int]]:
    """Every equation, those of inner jaxprs too, and how often it runs."""
    for eqn in jaxpr.eqns:
        yield eqn, times
        inner = times * eqn.params["length"] if eqn.primitive.name == "scan" else times
        for value in eqn.params.values():
            for item in value if isinstance(value, tuple | list) else (value,):
                if isinstance(item, core.ClosedJaxpr):
                    yield from _equations(item.jaxpr, inner)
                elif isinstance(item, core.Jaxpr):
                    yield from _equations(item, inner)
