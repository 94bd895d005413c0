"""How much memory a program needs at its worst moment, from its jaxpr alone.

A model of what XLA does:
- elementwise work is fused into what reads it and is never stored, unless a product (on a TPU not
  even that), a collective, a loop or the caller wants it as an array; what a fused value is made of
  lives until then;
- an elementwise result may take the place of an operand that is read for the last time, the state
  of a loop that of its initial value;
- collectives of fsdp run ahead and behind: within a loop, all gathered weights of an iteration and
  all gradients that are still to be scattered are there at once; on a GPU, whose collectives are
  all asynchronous, a gradient that is scattered outside of loops is there to the end;
- what a loop stacks is there, whole, from its start; the order of operations is the jaxpr's.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from nn.analysis import work
from nn.analysis.collectives import axes_of
from nn.analysis.program import LOOPS, Op, Program, Value
from nn.parallel.mesh import platform

# Another name for the same memory (a transposition is a matter of layout to what reads it).
VIEWS = frozenset(
    (
        *("copy", "copy_p", "expand_dims", "optimization_barrier", "pcast", "pvary", "reshape"),
        *("reshard", "squeeze", "stop_gradient", "transpose", "sharding_constraint", "name"),
    )
)
# Fused into what reads them, as all arithmetic is.
FUSED = work.ARITHMETIC | {
    *("bitcast_convert_type", "broadcast_in_dim", "concatenate", "convert_element_type"),
    *("dynamic_slice", "iota", "pad", "reduce_precision", "rev", "slice", "split"),
    *("random_bits", "random_fold_in", "random_wrap", "random_unwrap", "threefry2x32"),
}
# Fused work that is stored when several read it, rather than done for each of them.
DEAR = frozenset(
    (
        *("atan2", "cbrt", "cos", "cosh", "digamma", "div", "erf", "erf_inv", "erfc", "exp"),
        *("exp2", "expm1", "integer_pow", "lgamma", "log", "log1p", "logistic", "pow", "rem"),
        *("rsqrt", "sin", "sinh", "sqrt", "tan", "tanh", "threefry2x32"),
    )
)
# Store their result but fuse what they read.
READERS = FUSED | work.REDUCTIONS | work.SCATTERS | {"dynamic_update_slice", "gather", "scatter"}
# On a TPU products do so too: what they multiply may be computed on the way in.
PRODUCTS = frozenset(("dot_general", "ragged_dot_general"))
# Change their first operand in place.
IN_PLACE = work.SCATTERS | {"dynamic_update_slice", "scatter"}
GATHERS = frozenset(("all_gather", "all_gather_invariant"))
# Of what a slice reads, only this much.
PARTIAL = frozenset(("dynamic_slice", "gather", "slice", "split"))

GATHERED, SAVED, WORKING = "gathered weights", "saved activations", "working set"


@dataclasses.dataclass(frozen=True)
class Peak:
    """bytes: at the worst moment, what is given and what is returned aside. kinds: of these."""

    kinds: Mapping[str, int]

    @property
    def bytes(self) -> int:
        return sum(self.kinds.values())


class Storage:
    """Which values of a program are stored, and what each value is computed from.

    wanted: results that must be there as arrays, among others.
    """

    def __init__(self, program: Program, wanted: Iterable[Value]) -> None:
        self.base: dict[Value, Value] = {}  # of a view, what it is a view of
        self.stored: set[Value] = set(program.ins)
        readers_here = READERS | (PRODUCTS if platform() == "tpu" else set())
        readers: collections.Counter[Value] = collections.Counter()
        for op in program.ops:
            if op.name in VIEWS:
                if op.ins:
                    self.base[op.outs[0]] = self.origin(op.ins[0])
                continue
            for value in set(map(self.origin, op.ins)):
                readers[value] += 1
            if op.name not in FUSED:
                self.stored.update(op.outs)
            if op.name not in readers_here:
                self.stored.update(map(self.origin, op.ins))
        self.stored.update(map(self.origin, wanted))
        dear = (op for op in program.ops if op.name in DEAR)
        self.stored.update(out for op in dear for out in op.outs if readers[out] > 1)
        # Stored values that each value comes from, and how many bytes of each are read.
        self.reads: dict[Value, dict[Value, int]] = {v: {v: v.bytes} for v in program.ins}
        for op in program.ops:
            sources = self.sources(op)
            for out in op.outs:
                self.reads[out] = {out: out.bytes} if out in self.stored else sources

    def origin(self, value: Value) -> Value:
        return self.base[value] if value in self.base else value

    def sources(self, op: Op) -> dict[Value, int]:
        """The stored values that an operation reads, and how many bytes of each."""
        found: dict[Value, int] = {}
        for value in map(self.origin, op.ins):
            for source, size in self.reads[value].items() if value in self.reads else ():
                found[source] = max(found[source] if source in found else 0, size)
        if op.name in PARTIAL:
            most = sum(out.bytes for out in op.outs)
            found = {source: min(size, most) for source, size in found.items()}
        return found


def peak(program: Program) -> Peak:
    """Memory at the worst moment, without the arguments and the results of the program."""
    results = [v for v in program.outs if v is not None]
    storage = Storage(program, results)
    elsewhere = set(program.ins) | set(map(storage.origin, results))
    held = _in_flight(program, storage, {"reduce_scatter"}) if platform() == "gpu" else set()
    return Peak(_worst(program, storage, elsewhere, [], held))


def _worst(
    program: Program,
    storage: Storage,
    elsewhere: set[Value],
    state: Sequence[Value],
    held: Iterable[Value] = (),
) -> dict[str, int]:
    """Bytes by kind at the worst moment.

    elsewhere: values whose memory is counted by the caller. state: of a loop, what it starts from.
    held: values that stay to the end.
    """
    last = _last_reads(program, storage) | dict.fromkeys(held, len(program.ops))
    live = dict.fromkeys(state, WORKING)
    worst = _sizes(live)
    for index, op in enumerate(program.ops):
        if op.name in VIEWS:
            continue
        gone = [v for v in storage.sources(op) if last[v] == index]
        for value in gone if op.name in FUSED | IN_PLACE else _initial(op, storage):
            if last[value] == index:
                live.pop(value, None)
        kind = GATHERED if op.name in GATHERS else SAVED if op.name == "scan" else WORKING
        made = [v for v in op.outs if v in storage.stored and v not in elsewhere]
        live.update(dict.fromkeys(made, kind))
        here = _sizes(live)
        here.update(_inside(op))
        worst = max(worst, here, key=lambda kinds: kinds.total())
        for value in (*gone, *(v for v in made if v not in last)):
            live.pop(value, None)
    return worst


def _last_reads(program: Program, storage: Storage) -> dict[Value, int]:
    """The number of the last operation that reads each stored value; results: of the end."""
    last = {source: index for index, op in enumerate(program.ops) for source in storage.sources(op)}
    ends = [storage.origin(v) for v in program.outs if v is not None]
    return last | dict.fromkeys(ends, len(program.ops))


def _sizes(live: Mapping[Value, str]) -> collections.Counter[str]:
    sizes: collections.Counter[str] = collections.Counter()
    for value, kind in live.items():
        sizes[kind] += value.bytes
    return sizes


def _initial(op: Op, storage: Storage) -> list[Value]:
    """What the state of a loop starts from."""
    return [storage.origin(v) for v in op.ins[op.consts : op.consts + op.carry]]


def _inside(op: Op) -> dict[str, int]:
    """What the worst branch or an iteration needs beside operands and results."""
    found = [_body(op, body) for body in op.bodies]
    return max(found, key=lambda kinds: sum(kinds.values()), default={})


def _body(op: Op, body: Program) -> dict[str, int]:
    """Of a loop, the caller counts the state as it starts; what is stacked is written at once."""
    loop = op.name in LOOPS
    state = body.ins[op.consts : op.consts + op.carry]
    results = body.outs[: op.carry] if loop else body.outs
    kept = Program(body.ins, body.ops, results)
    storage = Storage(kept, [v for v in results if v is not None])
    flying = _in_flight(kept, storage) if loop else set()
    worst = _worst(kept, storage, (set(body.ins) - set(state)) | flying, state)
    worst[GATHERED] += sum(v.bytes for v in flying)
    if loop:
        worst[WORKING] -= sum(v.bytes for v in state)
    return worst


def _in_flight(
    program: Program, storage: Storage, kinds: Iterable[str] = (*GATHERS, "reduce_scatter")
) -> set[Value]:
    """Weights that fsdp gathers and gradients that it scatters, all of an iteration."""
    found: set[Value] = set()
    for op in program.ops:
        if op.name in kinds and "fsdp" in axes_of(op.eqn.params):
            found.update(op.outs if op.name in GATHERS else map(storage.origin, op.ins))
    return found
