"""Which collectives a step asks for, read from its jaxpr: how often, over which axes, how much.

This is the program as it is written, before a compiler merges, splits or removes any of them; a
collective in a loop counts as often as the loop runs. A value that is typed as varying over an axis
and was not before costs nothing; its transpose, the sum of gradients, is counted.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

from nn.analysis import flops

# Primitive -> what it does, in the words of XLA.
KINDS = {
    **dict.fromkeys(("psum", "psum_invariant", "pmax", "pmin"), "all-reduce"),
    **dict.fromkeys(("all_gather", "all_gather_invariant"), "all-gather"),
    "reduce_scatter": "reduce-scatter",
    "ppermute": "permute",
    **dict.fromkeys(("all_to_all", "ragged_all_to_all"), "all-to-all"),
}


class Collective(NamedTuple):
    """One operation, as often as it runs: what one device puts in, (dtype, bytes) per array."""

    kind: str
    axes: tuple[str, ...]
    arrays: tuple[tuple[str, int], ...]
    times: int

    def __str__(self) -> str:
        return f"{self.kind} {' x '.join(self.axes)}"


def count(fn: Callable[..., Any], *args: Any) -> dict[str, int]:
    """ "all-gather fsdp" -> how often `fn(*args)` asks for it.

    args may be `jax.ShapeDtypeStruct`s; nothing is computed.
    """
    return count_jaxpr(jax.make_jaxpr(fn)(*args).jaxpr)


def count_jaxpr(jaxpr: Any) -> dict[str, int]:
    """`count` of a function that is traced already."""
    counts: collections.Counter[str] = collections.Counter()
    for found in each(jaxpr):
        counts[str(found)] += found.times
    return dict(sorted(counts.items()))


def each(jaxpr: Any, times: int = 1) -> Iterator[Collective]:
    """The collectives of a jaxpr, those of its inner ones too.

    The body of a while loop, whose trip count is unknown, counts once; of the branches of a
    conditional all count.
    """
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in KINDS and (axes := axes_of(eqn.params)):
            arrays = tuple((v.aval.dtype.name, _bytes(v.aval)) for v in eqn.invars)
            yield Collective(KINDS[eqn.primitive.name], axes, arrays, times)
        inner = times * eqn.params["length"] if eqn.primitive.name == "scan" else times
        for body in flops.jaxprs(eqn.params):
            yield from each(body, inner)


def axes_of(params: Mapping[str, Any]) -> tuple[str, ...]:
    """The mesh axes of a collective."""
    axes = params["axes"] if "axes" in params else params["axis_name"]
    return tuple(axes) if isinstance(axes, tuple | list) else (axes,)


def _bytes(aval: Any) -> int:
    return math.prod(aval.shape) * aval.dtype.itemsize
