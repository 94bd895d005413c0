"""A jaxpr as a flat list of operations, for the analyses of what it keeps and what it moves.

Calls (jit, remat, custom derivatives) are inlined, so that only loops and branches hold programs of
their own. `of_device` gives what runs inside a shard_map: shapes there are those of one device.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from jax.extend import core
from jax.interpreters import partial_eval

from nn.analysis import flops

LOOPS = frozenset(("scan", "while"))


@dataclasses.dataclass(eq=False)
class Value:
    """One array. Two values are equal only when they are the same one."""

    shape: tuple[int, ...]
    dtype: Any

    @property
    def bytes(self) -> int:
        try:
            return math.prod(self.shape) * self.dtype.itemsize
        except TypeError:  # a key of random numbers
            return 0


@dataclasses.dataclass(eq=False)
class Op:
    """One equation.

    ins: without literals. outs: without those that nobody reads.
    bodies: of a loop, one; of a cond, one per branch.
    consts, carry: of a loop, how many of `ins` come first and next; the rest is sliced.
    times: how often the bodies run.
    """

    eqn: Any
    scope: str
    ins: list[Value]
    outs: list[Value]
    bodies: list[Program] = dataclasses.field(default_factory=list)
    consts: int = 0
    carry: int = 0
    times: int = 1

    @property
    def name(self) -> str:
        name: str = self.eqn.primitive.name
        return name


@dataclasses.dataclass(eq=False)
class Program:
    """Operations in order. ins, outs: None for what is a literal."""

    ins: list[Value]
    ops: list[Op]
    outs: list[Value | None]


def of_device(jaxpr: Any) -> Program:
    """What one device runs of a jaxpr: the shard_map in it, all of it where there is none."""
    jaxpr = flops.opened(jaxpr)
    inside = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "shard_map"]
    return of_jaxpr(inside[0].params["jaxpr"] if inside else jaxpr)


def of_jaxpr(jaxpr: Any) -> Program:
    """The program of a jaxpr, without what does not reach its results."""
    jaxpr = flops.opened(jaxpr)
    jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)
    return _program(jaxpr, "")


def _program(jaxpr: Any, scope: str) -> Program:
    known = {v: _value(v) for v in (*jaxpr.constvars, *jaxpr.invars)}
    ops: list[Op] = []
    _inline(jaxpr, known, ops, scope)
    outs = [None if isinstance(v, core.Literal) else known[v] for v in jaxpr.outvars]
    return Program([known[v] for v in jaxpr.invars], ops, outs)


def _value(var: Any) -> Value:
    return Value(tuple(var.aval.shape), var.aval.dtype)


def _inline(jaxpr: Any, known: dict[Any, Value], ops: list[Op], scope: str) -> None:
    for eqn in jaxpr.eqns:
        path = f"{scope}/{eqn.source_info.name_stack}"
        body = _called(eqn)
        if body is None:
            ops.append(_op(eqn, known, path))
            continue
        inner = {v: _value(v) for v in body.constvars}
        for var, outer in zip(body.invars, eqn.invars, strict=True):
            inner[var] = _value(var) if isinstance(outer, core.Literal) else known[outer]
        _inline(body, inner, ops, path)
        for var, result in zip(eqn.outvars, body.outvars, strict=True):
            known[var] = _value(var) if isinstance(result, core.Literal) else inner[result]


def _called(eqn: Any) -> Any:
    """The jaxpr that the equation only calls, or None."""
    if (
        eqn.primitive.name in (*LOOPS, "cond", "pallas_call")
        or eqn.primitive.name in flops.COMBINERS
    ):
        return None
    bodies = list(flops.jaxprs(eqn.params))
    fits = len(bodies) == 1 and len(bodies[0].invars) == len(eqn.invars)
    return bodies[0] if fits else None


def _op(eqn: Any, known: dict[Any, Value], scope: str) -> Op:
    ins = [known[v] for v in eqn.invars if not isinstance(v, core.Literal)]
    for var in eqn.outvars:
        known[var] = _value(var)
    outs = [known[v] for v in eqn.outvars]
    op = Op(eqn, scope, ins, outs)
    if eqn.primitive.name == "scan":
        return _scan(op, known)
    if eqn.primitive.name == "while":
        op.bodies = [_program(flops.opened(eqn.params["body_jaxpr"]), scope)]
        first = eqn.params["cond_nconsts"]
        op.ins = [known[v] for v in eqn.invars[first:] if not isinstance(v, core.Literal)]
        op.consts = eqn.params["body_nconsts"]
        op.carry = len(op.ins) - op.consts
    elif eqn.primitive.name == "cond":
        op.bodies = [_program(flops.opened(b), scope) for b in eqn.params["branches"]]
    return op


def _scan(op: Op, known: dict[Any, Value]) -> Op:
    """Literals among the operands get a value too, so that operands and body stay aligned."""
    eqn = op.eqn
    op.ins = [_value(v) if isinstance(v, core.Literal) else known[v] for v in eqn.invars]
    body = _program(flops.opened(eqn.params["jaxpr"]), op.scope)
    op.consts, op.carry = flops.scan_layout(eqn)
    op.bodies, op.times = [body], eqn.params["length"]
    return op
