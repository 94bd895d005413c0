"""Floating-point operations of any function, counted on its jaxpr; model FLOP utilisation.

Conventions, all of them those of the literature on MFU:
- a multiplication with its addition is 2 FLOPs; `total` is of matrix products, convolutions and
  kernels only, and elementwise work is counted beside it, one per element;
- a loop is counted as often as it runs (XLA's own `cost_analysis` counts its body once);
- padding of a convolution is counted, the zeros between dilated elements are not, so that the
  backward pass of a strided convolution costs what the forward pass does, twice;
- a grouped product counts the rows that there are, whatever the backend makes of it;
- inside a shard_map shapes are those of one device: times the number of devices;
- attention is counted in full unless `causal` is asked for (see `Utilization`).
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from nn import names
from nn.analysis import work

# Their jaxprs combine two numbers and are no part of the flow of the program.
COMBINERS = work.SCATTERS | {"scatter", "reduce", "reduce_window", "select_and_scatter_add", "sort"}


@dataclasses.dataclass(frozen=True)
class Flops:
    """What `count` found.

    matmul: FLOPs of "dot", "attention" (batched products inside a name scope that contains
      "attention", as a layer of that name makes), "conv", "ragged_dot" and "kernel" (Pallas).
    elementwise: operations of everything else that calculates.
    loops: while loops, whose trip count is unknown and whose body was counted once.
    opaque: operations that were not counted at all.
    """

    matmul: Mapping[str, int]
    elementwise: int = 0
    loops: tuple[str, ...] = ()
    opaque: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """FLOPs of matrix products, convolutions and kernels; attention in full."""
        return sum(self.matmul.values())

    @property
    def causal(self) -> float:
        """`total` with half of attention: what a causal mask leaves."""
        return self.total - self.matmul.get("attention", 0) / 2

    def __add__(self, other: Flops) -> Flops:
        merged = collections.Counter(self.matmul) + collections.Counter(other.matmul)
        elementwise = self.elementwise + other.elementwise
        loops = tuple(dict.fromkeys(self.loops + other.loops))
        opaque = tuple(dict.fromkeys(self.opaque + other.opaque))
        return Flops(dict(merged), elementwise, loops, opaque)

    def __sub__(self, other: Flops) -> Flops:
        """What this has beyond the other, at least 0 of each kind."""
        rest = collections.Counter(self.matmul) - collections.Counter(other.matmul)
        loops = tuple(x for x in self.loops if x not in other.loops)
        opaque = tuple(x for x in self.opaque if x not in other.opaque)
        return Flops(dict(rest), max(self.elementwise - other.elementwise, 0), loops, opaque)

    def __mul__(self, times: int) -> Flops:
        matmul = {kind: flops * times for kind, flops in self.matmul.items()}
        return dataclasses.replace(self, matmul=matmul, elementwise=self.elementwise * times)


NOTHING = Flops({})


@dataclasses.dataclass(frozen=True)
class TrainFlops:
    """One gradient of a loss: what the model needs, and what is computed again to save memory."""

    forward: Flops
    backward: Flops
    recompute: Flops

    @property
    def model(self) -> Flops:
        """For MFU: forward and backward, without what is computed twice."""
        return self.forward + self.backward

    @property
    def executed(self) -> Flops:
        """For hardware utilisation (HFU)."""
        return self.model + self.recompute


def count(fn: Callable[..., Any], *args: Any) -> Flops:
    """FLOPs of `fn(*args)`.

    Args:
      args: arrays or `jax.ShapeDtypeStruct`s; nothing is computed.
    """
    jaxpr = jax.make_jaxpr(fn)(*args).jaxpr
    return _walk(jaxpr, [False] * len(jaxpr.invars), "").clean


def train_step_flops(loss: Callable[..., Any], params: Any, *args: Any) -> TrainFlops:
    """FLOPs of `loss(params, *args)` and of its gradient in params.

    Args:
      loss: returns a scalar, or a tuple whose first element is that and whose rest is not
        differentiated.
      params, args: as in `count`.
    """

    def scalar(params: Any, args: Any) -> Any:
        out = loss(params, *args)
        return out[0] if isinstance(out, tuple) else out

    def step(seed: jax.Array, params: Any, args: Any) -> Any:
        value, backward = jax.vjp(lambda p: scalar(p, args), params)
        return value, backward(seed.astype(value.dtype))

    jaxpr = jax.make_jaxpr(step)(jnp.ones(()), params, args).jaxpr
    # What depends on the cotangent of the loss is the backward pass; the rest is the forward pass,
    # and whatever of it is done again.
    found = _walk(jaxpr, [i == 0 for i in range(len(jaxpr.invars))], "")
    forward = count(scalar, params, args)
    return TrainFlops(forward, found.marked, found.clean - forward)


@dataclasses.dataclass(frozen=True)
class Utilization:
    """A share of the peak, and what it means; `str()` prints all of it."""

    value: float
    attention: str  # full | causal
    peak: float  # FLOP/s of one device

    def __str__(self) -> str:
        return (
            f"{self.value:.1%} of {self.peak / 1e12:g} TFLOP/s per device "
            f"(attention counted {ATTENTION[self.attention]})"
        )


ATTENTION = {"full": "in full", "causal": "by half, as a causal mask leaves it"}


def mfu(
    flops: Flops, seconds: float, devices: int, peak: float, attention: str = "full"
) -> Utilization:
    """Model FLOP utilisation (Chowdhery et al. 2022, appendix B).

    Args:
      flops: of one step over all devices: `train_step_flops(...).model`.
      seconds: of one step.
      peak: FLOP/s of one device for dense products of the type that was used.
      attention: "full" or "causal" (half; right for causal self-attention only).
    Raises:
      ValueError: unknown convention, or a time, number of devices or peak that is not positive.
    """
    names.lookup("convention for attention", attention, ATTENTION)
    for what, number in (("seconds", seconds), ("devices", devices), ("peak", peak)):
        if not number > 0:
            raise ValueError(f"mfu: {what}={number} must be positive")
    work = flops.total if attention == "full" else flops.causal
    return Utilization(work / (seconds * devices * peak), attention, peak)


def mfus(flops: Flops, seconds: float, devices: int, peak: float) -> dict[str, float]:
    """convention for attention -> `mfu`, as a share of 1."""
    return {name: mfu(flops, seconds, devices, peak, name).value for name in ATTENTION}


def of_equation(eqn: Any, scope: str) -> Flops:
    """FLOPs of one equation of a jaxpr; scope: the name scopes that enclose it."""
    return _equation(eqn, [False] * len(eqn.invars), scope).clean


@dataclasses.dataclass
class _Found:
    """Work that does not depend on a marked input, work that does, and which results do."""

    clean: Flops
    marked: Flops
    out: list[bool]

    def __mul__(self, times: int) -> _Found:
        return _Found(self.clean * times, self.marked * times, self.out)


def _walk(jaxpr: Any, marks: Sequence[bool], scope: str) -> _Found:
    """Count a jaxpr whose inputs are marked or not; scope: names of what encloses it."""
    known = dict(zip(jaxpr.invars, marks, strict=True))
    pieces: dict[bool, list[Flops]] = {False: [], True: []}
    for eqn in jaxpr.eqns:
        ins = [not isinstance(v, core.Literal) and known.get(v, False) for v in eqn.invars]
        found = _equation(eqn, ins, f"{scope}/{eqn.source_info.name_stack}")
        pieces[False].append(found.clean)
        pieces[True].append(found.marked)
        known.update(zip(eqn.outvars, found.out, strict=True))
    out = [not isinstance(v, core.Literal) and known.get(v, False) for v in jaxpr.outvars]
    return _Found(sum(pieces[False], NOTHING), sum(pieces[True], NOTHING), out)


def _equation(eqn: Any, ins: list[bool], scope: str) -> _Found:
    name = eqn.primitive.name
    if name in INNER:
        return INNER[name](eqn, ins, scope)
    bodies = [] if name in COMBINERS else list(jaxprs(eqn.params))
    if bodies:
        return _call(eqn, bodies, ins, scope)
    return _leaf(_work(eqn, scope), eqn, ins)


def _leaf(flops: Flops, eqn: Any, ins: list[bool]) -> _Found:
    mark = any(ins)
    out = [mark] * len(eqn.outvars)
    return _Found(NOTHING, flops, out) if mark else _Found(flops, NOTHING, out)


def jaxprs(params: Mapping[str, Any]) -> Iterator[Any]:
    """What the parameters of an equation hold of jaxprs, without their constants."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr | core.Jaxpr):
                yield opened(item)


def _call(eqn: Any, bodies: Sequence[Any], ins: list[bool], scope: str) -> _Found:
    """jit, remat, custom_jvp, custom_vjp ...: the body runs once."""
    clean, marked, out = NOTHING, NOTHING, [any(ins)] * len(eqn.outvars)
    for body in bodies:
        fits = len(body.invars) == len(ins)
        found = _walk(body, ins if fits else [any(ins)] * len(body.invars), scope)
        clean, marked = clean + found.clean, marked + found.marked
        if len(bodies) == 1 and fits and len(found.out) == len(out):
            out = found.out
    return _Found(clean, marked, out)


def _loop(body: Any, consts: list[bool], carry: list[bool], xs: list[bool], scope: str) -> _Found:
    """One iteration, with the marks that the carry has in the end."""
    while True:
        found = _walk(body, [*consts, *carry, *xs], scope)
        after = [a or b for a, b in zip(carry, found.out, strict=False)]
        if after == carry:
            return found
        carry = after


def opened(jaxpr: Any) -> Any:
    """A jaxpr without its constants; what an equation holds differs between versions of JAX."""
    return jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr


def _scan(eqn: Any, ins: list[bool], scope: str) -> _Found:
    """Operands are constants, carry and what is sliced along its first dimension, in this order."""
    body = opened(eqn.params["jaxpr"])
    first, carried = scan_layout(eqn)
    last = first + carried
    found = _loop(body, ins[:first], ins[first:last], ins[last:], scope)
    return found * eqn.params["length"]


def scan_layout(eqn: Any) -> tuple[int, int]:
    """How many operands of a scan are constants and how many carried; versions of JAX differ."""
    body = opened(eqn.params["jaxpr"])

    def sliced(outer: Any, inner: Any) -> int:
        pairs = zip(outer, inner, strict=True)
        return sum(len(x.aval.shape) > len(y.aval.shape) for x, y in pairs)

    carried = len(eqn.outvars) - sliced(eqn.outvars, body.outvars)
    return len(eqn.invars) - sliced(eqn.invars, body.invars) - carried, carried


def _while(eqn: Any, ins: list[bool], scope: str) -> _Found:
    p = eqn.params
    n, m = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
    body = _loop(opened(p["body_jaxpr"]), ins[n:m], ins[m:], [], scope)
    test = _walk(opened(p["cond_jaxpr"]), [*ins[:n], *body.out], scope)
    loop = dataclasses.replace(NOTHING, loops=(f"while{_place(eqn, scope)}",))
    return _Found(body.clean + test.clean + loop, body.marked + test.marked, body.out)


def _cond(eqn: Any, ins: list[bool], scope: str) -> _Found:
    """The dearest branch."""
    branches = [_walk(opened(b), ins[1:], scope) for b in eqn.params["branches"]]
    out = [ins[0] or any(marks) for marks in zip(*(b.out for b in branches), strict=True)]
    dearest = max(
        branches,
        key=lambda b: (b.clean.total + b.marked.total, b.clean.elementwise + b.marked.elementwise),
    )
    return _Found(dearest.clean, dearest.marked, out)


def _shard_map(eqn: Any, ins: list[bool], scope: str) -> _Found:
    p = eqn.params
    sizes = dict(p["mesh"].shape)
    manual = next((p[key] for key in ("newly_manual_axes", "manual_axes") if key in p), sizes)
    devices = math.prod(sizes[axis] for axis in manual)
    return _call(eqn, [opened(p["jaxpr"])], ins, scope) * devices


def _pallas(eqn: Any, ins: list[bool], scope: str) -> _Found:
    """By the kernel's own estimate; else its body for every step of the grid."""
    p = eqn.params
    estimate, grid = p["cost_estimate"], p["grid_mapping"].grid
    if estimate is not None:
        flops = Flops({"kernel": int(estimate.flops)}, int(estimate.transcendentals))
    elif all(isinstance(size, int) for size in grid):
        body = opened(p["jaxpr"])
        inside = _walk(body, [False] * len(body.invars), scope).clean * math.prod(grid)
        flops = dataclasses.replace(inside, matmul={"kernel": inside.total})
    else:
        flops = dataclasses.replace(NOTHING, opaque=(f"pallas_call{_place(eqn, scope)}",))
    return _leaf(flops, eqn, ins)


INNER = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "shard_map": _shard_map,
    "pallas_call": _pallas,
}


def _place(eqn: Any, scope: str) -> str:
    where = "/".join(filter(None, scope.split("/")))
    return f" in {where}" if where else ""


def _work(eqn: Any, scope: str) -> Flops:
    """FLOPs of an equation without a body."""
    kind, amount = work.of_equation(eqn)
    if kind == "elementwise":
        return Flops({}, amount)
    if kind == "opaque":
        return dataclasses.replace(NOTHING, opaque=(f"{eqn.primitive.name}{_place(eqn, scope)}",))
    if kind == "batched_dot":
        kind = "attention" if "attention" in scope.lower() else "dot"
    return Flops({kind: amount}) if amount else NOTHING
