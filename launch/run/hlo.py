"""Reading a compiled program: XLA's optimized HLO text as computations, loops and memory traffic.

The text is that of `jax.stages.Compiled.as_text()`. XLA's own `cost_analysis` counts the body of a
loop once; here every computation has the number of times that it runs in one call.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator

ITEM_BITS = {
    **dict.fromkeys(("token", "opaque"), 0),
    **dict.fromkeys(("s4", "u4", "f4e2m1fn"), 4),
    **dict.fromkeys(("pred", "s8", "u8"), 8),
    **dict.fromkeys(("s16", "u16", "f16", "bf16"), 16),
    **dict.fromkeys(("s32", "u32", "f32"), 32),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 64),
    "c128": 128,
}
ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,]*)\](\{[^{}]*\})?")
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
OPERAND = re.compile(r"%([\w.\-]+)")
TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')

# They name values, and move none.
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"),
    *("partition-id", "replica-id", "opt-barrier", "while", "conditional", "call", "domain"),
}
PRODUCTS = {"dot", "convolution", "ragged-dot", "scaled-dot"}
# Calls of kernels that multiply matrices, by the beginning of their target.
KERNELS = ("__cublas", "__cudnn", "__triton", "tpu_custom_call", "__onednn")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: `name = shape opcode(operands), attributes`."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool = False

    def called(self, *keys: str) -> list[str]:
        """The computations that attributes such as `calls=` or `body=` name."""
        found = []
        for key in keys:
            match = re.search(rf"\b{key}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes)
            found += re.findall(r"[\w.\-]+", match[1]) if match else []
        return found


@dataclasses.dataclass(frozen=True)
class Module:
    """The computations of a program by name, each in the order in which it is scheduled."""

    computations: dict[str, list[Instruction]]
    entry: str

    @functools.cached_property
    def counts(self) -> dict[str, int]:
        """How often each computation runs in one call of the program.

        Of a conditional every branch is counted, so that the figures are an upper bound.
        """
        counts: collections.Counter[str] = collections.Counter()

        def visit(name: str, times: int) -> None:
            counts[name] += times
            for instruction in self.computations[name]:
                for child, repeats in self.children(instruction):
                    visit(child, times * repeats)

        visit(self.entry, 1)
        return dict(counts)

    @functools.cached_property
    def fused(self) -> frozenset[str]:
        """The computations that run inside an instruction, whose values are no arrays in memory."""
        return frozenset(
            child
            for instructions in self.computations.values()
            for i in instructions
            if i.opcode not in ("while", "conditional", "call")
            for child, _ in self.children(i)
        )

    def children(self, instruction: Instruction) -> Iterator[tuple[str, int]]:
        """The computations that an instruction starts, and how often; reducers are left out."""
        if instruction.opcode == "while":
            yield instruction.called("body")[0], self.trip_count(instruction)
        elif instruction.opcode == "conditional":
            keys = ("branch_computations", "true_computation", "false_computation")
            yield from ((name, 1) for name in instruction.called(*keys))
        elif instruction.opcode == "call":
            yield from ((name, 1) for name in instruction.called("to_apply"))
        else:
            yield from ((name, 1) for name in instruction.called("calls"))

    def trip_count(self, loop: Instruction) -> int:
        """How often a `while` runs: what XLA noted, or the bound its condition compares with.

        1 where neither says.
        """
        if noted := TRIP_COUNT.search(loop.attributes):
            return int(noted[1])
        bounds: list[int] = []
        names = loop.called("condition")
        while names:
            for instruction in self.computations[names.pop()]:
                names += instruction.called("calls")
                constant = re.fullmatch(r"[su]\d+\[\](\{.*\})?", instruction.shape)
                if instruction.opcode == "constant" and constant:
                    bounds.append(int(instruction.attributes))
        return max([1, *bounds])

    @functools.cached_property
    def multiplying(self) -> frozenset[str]:
        """The computations that hold a matrix product or a kernel, themselves or in what they call.

        Those that are called come before their callers in the text.
        """
        found: set[str] = set()
        for name, body in self.computations.items():
            for i in body:
                if is_product(i) or any(child in found for child, _ in self.children(i)):
                    found.add(name)
        return frozenset(found)

    def multiplies(self, instruction: Instruction) -> bool:
        """Whether a matrix product or a kernel is in this instruction or in what it calls."""
        called = (child for child, _ in self.children(instruction))
        return is_product(instruction) or any(name in self.multiplying for name in called)


def is_product(instruction: Instruction) -> bool:
    """A matrix product, a convolution, or a call of a kernel."""
    if instruction.opcode == "custom-call":
        return any(f'custom_call_target="{k}' in instruction.attributes for k in KERNELS)
    return instruction.opcode in PRODUCTS


def parse(text: str) -> Module:
    """The computations of a program's text. Raises ValueError where it has no entry."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if head := COMPUTATION.match(line):
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (found := INSTRUCTION.match(line)):
            current.append(_instruction(found[2], line[found.end() :], bool(found[1])))
    if not entry:
        raise ValueError("not the text of a compiled program: it has no ENTRY computation")
    return Module(computations, entry)


def _instruction(name: str, rest: str, root: bool) -> Instruction:
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    start = rest.index("(")
    end = _closing(rest, start)
    inside = rest[start + 1 : end]
    literal = rest[:start] in ("constant", "parameter")
    operands = () if literal else tuple(OPERAND.findall(inside))
    return Instruction(
        name, shape, rest[:start], operands, inside if literal else rest[end + 1 :], root
    )


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` is closed."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"parenthesis not closed: {text[start : start + 80]!r}")


def shape_bytes(shape: str, where: str = "") -> int:
    """Bytes of an array or tuple such as `(f32[8,128]{1,0}, bf16[])`, without padding.

    where: "hbm" leaves out arrays that lie in another memory space of the chip, such as VMEM.
    """
    total = 0
    for kind, dims, layout in ARRAY.findall(shape):
        if where == "hbm" and re.search(r"S\([1-9]", layout):
            continue
        bits = 8 if kind.startswith("f8") else ITEM_BITS.get(kind, 0)
        total += math.ceil(math.prod(int(d) for d in dims.split(",") if d) * bits / 8)
    return total


def memory_traffic(module: Module) -> int:
    """Bytes that one call of the program reads from and writes to memory, on one device.

    Every scheduled instruction reads its operands and writes its result; what is fused inside it
    moves nothing. Of an operand that is only sliced the slice is counted, and of a result that is
    an update in place the update.
    """
    return sum(
        times * sum(_traffic(module, instruction, shapes) for instruction in instructions)
        for name, times in module.counts.items()
        if name not in module.fused
        for instructions in [module.computations[name]]
        for shapes in [{i.name: i.shape for i in instructions}]
    )


def _traffic(module: Module, instruction: Instruction, shapes: dict[str, str]) -> int:
    if instruction.opcode in FREE or instruction.opcode.endswith("-done"):
        return 0
    reads = [shape_bytes(shapes[name], "hbm") for name in instruction.operands]
    writes = shape_bytes(instruction.shape, "hbm")
    if instruction.opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * writes
    if instruction.opcode == "dynamic-update-slice":
        return 2 * reads[1]
    if instruction.opcode == "fusion":
        for name in instruction.called("calls"):
            body = module.computations[name]
            reads = [min(read, _read(body, k)) for k, read in enumerate(reads)]
            writes = min(writes, _written(body))
    return sum(reads) + writes


def _read(body: list[Instruction], index: int) -> int:
    """Bytes that a fused computation reads of its parameter `index`, if it only slices it."""
    name = next(
        (i.name for i in body if i.opcode == "parameter" and i.attributes == str(index)), ""
    )
    sizes = {i.name: shape_bytes(i.shape) for i in body}
    total = 0
    for user in (i for i in body if name in i.operands):
        if user.opcode in ("dynamic-slice", "gather", "slice"):
            total += shape_bytes(user.shape)
        elif user.opcode != "dynamic-update-slice" or user.operands[0] != name:
            return sizes[name]  # of an update in place what stays is not moved
    return total


def _written(body: list[Instruction]) -> int:
    """Bytes that a fused computation writes: of updates in place, the updates."""
    by_name = {i.name: i for i in body}
    root = next(i for i in body if i.root)
    results = [by_name[name] for name in root.operands] if root.opcode == "tuple" else [root]
    return sum(
        shape_bytes(by_name[i.operands[1]].shape)
        if i.opcode == "dynamic-update-slice"
        else shape_bytes(i.shape, "hbm")
        for i in results
    )
