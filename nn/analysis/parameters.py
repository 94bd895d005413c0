"""What parameters are for, read off the jaxpr of a forward pass; the counts of scaling laws.

Three conventions for the number of parameters give three exponents for the same runs (Kaplan et al.
2020 leave embeddings out, Hoffmann et al. 2022 do not, Porian et al. 2024 count the head), hence
all three, for any family:

- a value is made *of parameters* when neither it nor anything it was computed from is made of the
  inputs: a weight after casts, reshapes, a scan over layers, a scale, a sum with low-rank factors;
- parameters are *multiplied* when a value made of them meets one made of the inputs in a matrix
  product, grouped product or convolution;
- parameters are *looked up* when rows of a value made of them are gathered.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core

from nn.analysis import flops
from nn.parallel.weight import Named, is_named

PRODUCTS = frozenset(("dot_general", "conv_general_dilated", "ragged_dot_general", "ragged_dot"))


@dataclasses.dataclass(frozen=True)
class Uses:
    """Numbers of leaves, in the order of `jax.tree.leaves`."""

    multiplied: frozenset[int]
    looked_up: frozenset[int]


@dataclasses.dataclass(frozen=True)
class Counts:
    """Numbers of elements.

    total: of all parameters, the embeddings included.
    nonemb: without those that have a dimension of the vocabulary (tables, the head, its bias), and
      without other tables that are only looked up (learned positions).
    matmul: of those that are multiplied, the head included, tied or not; all experts.
    """

    total: int
    nonemb: int
    matmul: int


@dataclasses.dataclass(frozen=True)
class _Origin:
    """What a value is made of. of_inputs: then `leaves` is empty."""

    leaves: frozenset[int] = frozenset()
    of_inputs: bool = False

    def __or__(self, other: _Origin) -> _Origin:
        if self.of_inputs or other.of_inputs:
            return _INPUTS
        return _Origin(self.leaves | other.leaves)


_NEITHER = _Origin()
_INPUTS = _Origin(of_inputs=True)


def uses(forward: Callable[..., Any], params: Any, *inputs: Any) -> Uses:
    """How `forward(params, *inputs)` uses each leaf of `params`; arrays may be abstract."""
    jaxpr = jax.make_jaxpr(forward)(params, *inputs).jaxpr
    number = len(jax.tree.leaves(params))
    origins = [_Origin(frozenset([i])) for i in range(number)]
    origins += [_INPUTS] * (len(jaxpr.invars) - number)
    walk = _Walk()
    walk.jaxpr(jaxpr, origins)
    return Uses(frozenset(walk.multiplied), frozenset(walk.looked_up))


def count(named: Any, found: Uses) -> Counts:
    """The three counts of a tree of parameters; `Named` leaves tell of the vocabulary.

    found: `uses` of the same tree with its leaves unboxed.
    """
    leaves = jax.tree.leaves(named, is_leaf=is_named)
    sizes = [(leaf.value if isinstance(leaf, Named) else leaf).size for leaf in leaves]
    tables = found.looked_up - found.multiplied
    tables |= {i for i, x in enumerate(leaves) if isinstance(x, Named) and "vocab" in x.names}
    return Counts(
        total=sum(sizes),
        nonemb=sum(size for i, size in enumerate(sizes) if i not in tables),
        matmul=sum(sizes[i] for i in found.multiplied),
    )


class _Walk:
    """Follows origins through a jaxpr and notes what they meet."""

    def __init__(self) -> None:
        self.multiplied: set[int] = set()
        self.looked_up: set[int] = set()

    def jaxpr(self, jaxpr: Any, origins: Sequence[_Origin]) -> list[_Origin]:
        """The origins of the results, from those of the arguments."""
        known = dict(zip(jaxpr.invars, origins, strict=True))

        def origin(var: Any) -> _Origin:
            return known.get(var, _NEITHER) if not isinstance(var, core.Literal) else _NEITHER

        for eqn in jaxpr.eqns:
            known.update(
                zip(eqn.outvars, self.equation(eqn, [*map(origin, eqn.invars)]), strict=True)
            )
        return [origin(var) for var in jaxpr.outvars]

    def equation(self, eqn: Any, ins: list[_Origin]) -> list[_Origin]:
        name, results = eqn.primitive.name, len(eqn.outvars)
        if name == "scan":
            return self.scan(eqn, ins)
        if name == "while":
            return self.while_(eqn, ins)
        joined = _joined(ins)
        if name in PRODUCTS and joined.of_inputs:
            self.multiplied.update(*(x.leaves for x in ins))
        elif name == "gather":
            self.looked_up.update(ins[0].leaves)
        bodies = [] if name in flops.COMBINERS else list(flops.jaxprs(eqn.params))
        if not bodies:
            return [joined] * results
        chosen = ins[0] if name == "cond" else _NEITHER
        ins = ins[1:] if name == "cond" else ins
        outs = [[chosen] * results]
        for body in bodies:
            fits = len(body.invars) == len(ins)
            outs.append(self.jaxpr(body, ins if fits else [joined] * len(body.invars)))
        if any(len(out) != results for out in outs):
            return [joined] * results
        return [_joined(column) for column in zip(*outs, strict=True)]

    def scan(self, eqn: Any, ins: list[_Origin]) -> list[_Origin]:
        constants, carried = flops.scan_layout(eqn)
        last = constants + carried
        body = flops.opened(eqn.params["jaxpr"])
        return self.loop(body, ins[:constants], ins[constants:last], ins[last:])

    def while_(self, eqn: Any, ins: list[_Origin]) -> list[_Origin]:
        first, last = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        last += first
        return self.loop(flops.opened(eqn.params["body_jaxpr"]), ins[first:last], ins[last:], [])

    def loop(
        self, body: Any, constants: list[_Origin], carry: list[_Origin], sliced: list[_Origin]
    ) -> list[_Origin]:
        """Until what is carried round is made of nothing new."""
        while True:
            outs = self.jaxpr(body, [*constants, *carry, *sliced])
            after = [a | b for a, b in zip(carry, outs, strict=False)]
            if after == carry:
                return outs
            carry = after


def _joined(origins: Sequence[_Origin]) -> _Origin:
    joined = _NEITHER
    for origin in origins:
        joined |= origin
    return joined
