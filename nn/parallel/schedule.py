"""Which stage of a pipeline works on what, and when: plain arithmetic, without JAX.

A stage holds a part of the depth, a microbatch is a part of the batch. All stages take a step at
the same tick: `forward` and `backward` say what each then works on. The schedules of
`nn.parallel.pipeline` run on these two functions, with traced integers; `timeline` and `picture`
list the same on the host.

gpipe (Huang et al. 2019): all forward passes, then all backward passes.
interleaved (circular; Narayanan et al. 2021, section 2.2): the depth is cut into stages x rounds
  pieces, and a microbatch goes round the ring of stages `rounds` times.
1f1b (Narayanan et al. 2019, PipeDream-flush): a microbatch's backward pass starts as soon as its
  forward pass is done, so that a stage keeps the inputs of 2 stages - 1 microbatches at most.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from nn import names
from nn.parallel.mesh import USES

SCHEDULES = dict.fromkeys(USES["schedule"])


class Work(NamedTuple):
    """What a stage works on at a tick.

    live: whether it is work at all; the rest is a valid index in any case.
    part: number of the microbatch. chunk: number of the stage's piece of the depth.
    """

    live: Any
    part: Any
    chunk: Any


def ticks(stages: int, parts: int, rounds: int) -> int:
    """Ticks until the last microbatch has left the last stage."""
    return parts * rounds + stages - 1


def forward(tick: Any, stage: Any, stages: int, parts: int, rounds: int = 1) -> Work:
    """The forward pass of a stage at a tick.

    Microbatches enter in groups of `stages`: when the last one of a group has left the first stage,
    the first one comes round again, for the stage's next piece of the depth.
    """
    step, lap = tick - stage, stages * rounds
    live = (step >= 0) & (step < parts * rounds)
    part = step // lap * stages + step % stages
    return Work(live, part % parts, step % lap // stages)


def backward(tick: Any, stage: Any, stages: int, parts: int) -> Work:
    """The backward pass of a stage at a tick of 1f1b; of a part that the last stage has just done
    at tick t, stage i has it at tick t + stages - 1 - i."""
    part = tick - 2 * (stages - 1) + stage
    return Work((part >= 0) & (part < parts), part % parts, 0)


def phases(stages: int, parts: int) -> tuple[range, range, range]:
    """Ticks of 1f1b in which stages go forward only, both ways, backward only."""
    full, end = stages - 1, stages - 1 + parts
    return range(full), range(full, end), range(end, end + stages - 1)


def bubble(schedule: str, stages: int, microbatches: int, rounds: int = 1) -> float:
    """Share of the time in which a stage has no work: (n - 1) / (m v + n - 1).

    n stages, m microbatches, v rounds; the same for gpipe and 1f1b, where v = 1.
    """
    check(schedule, stages, microbatches, rounds)
    return (stages - 1) / (microbatches * rounds + stages - 1)


def check(schedule: str, stages: int, microbatches: int, rounds: int) -> None:
    """ValueError where these do not go together; names the rule and the nearest valid choice."""
    names.lookup("mesh.schedule", schedule, SCHEDULES)
    if rounds > 1 and schedule != "interleaved":
        raise ValueError(
            f"mesh.rounds={rounds} needs mesh.schedule='interleaved', but it is {schedule!r}; "
            f"nearest: mesh.rounds=1"
        )
    if rounds > 1 and microbatches % stages:
        nearest = max(round(microbatches / stages), 1) * stages
        raise ValueError(
            f"mesh.microbatches={microbatches}: mesh.schedule='interleaved' needs a multiple of "
            f"mesh.pipe={stages}; nearest: {nearest}"
        )


def check_layers(layers: int, stages: int, rounds: int) -> None:
    """ValueError where the layers cannot be cut into equal pieces."""
    if layers % (stages * rounds):
        good = [(s, r) for s in range(1, layers + 1) for r in range(1, rounds + 1)]
        good = [(s, r) for s, r in good if layers % (s * r) == 0]
        s, r = min(good, key=lambda c: (abs(math.log(c[0] / stages)), abs(c[1] - rounds)))
        pieces = f"mesh.pipe={stages}" + (f" x mesh.rounds={rounds}" if rounds > 1 else "")
        nearest = f"mesh.pipe={s}" + (f" x mesh.rounds={r}" if rounds > 1 else "")
        raise ValueError(
            f"{layers} layers cannot be cut into {pieces} equal pieces; nearest: {nearest}"
        )


def check_rows(rows: int, microbatches: int) -> None:
    """ValueError where the rows of a device cannot be cut into equal microbatches."""
    if rows % microbatches:
        raise ValueError(
            f"mesh.microbatches={microbatches} does not divide the {rows} rows of a device; "
            f"nearest that does: {names.nearest_divisor(rows, microbatches)}"
        )


def shared_dim(rows: int, positions: int, stages: int) -> int:
    """The dimension that the stages share out among themselves after the last layer.

    Rows where they divide, else positions; ValueError where neither does.
    """
    for dim, size in enumerate((rows, positions)):
        if size % stages == 0:
            return dim
    nearest = max(round(rows / stages), 1) * stages
    raise ValueError(
        f"mesh.pipe={stages} stages share the head out, but divide neither the {rows} rows nor the "
        f"{positions} positions of a device; nearest: {nearest} rows"
    )


class Route(NamedTuple):
    """One round of moving pieces of the depth: stage j sends its group[j] to stage to[j]."""

    group: tuple[int, ...]
    to: tuple[int, ...]


def routes(stages: int, rounds: int) -> list[Route]:
    """How pieces of the depth get from where they are stored to where they are used.

    Stage j stores pieces j v ... j v + v - 1 of n v, in the natural order of the layers, and piece
    g is used by stage g mod n. Each stage sends one piece and gets one in each of v rounds. With
    d = gcd(n, v), stage j sends its piece (r + floor(j d / n)) mod v in round r: j v mod n repeats
    with period n / d and is a multiple of d, and the shift differs from period to period mod d, so
    that no two stages send to the same one.
    """
    period = stages // math.gcd(stages, rounds)
    made = []
    for shift in range(rounds):
        group = tuple((shift + j // period) % rounds for j in range(stages))
        made.append(Route(group, tuple((j * rounds + group[j]) % stages for j in range(stages))))
    return made


def arrivals(stages: int, rounds: int) -> list[list[int]]:
    """[stage][chunk]: the round of `routes` in which the stage gets that piece."""
    table = [[0] * rounds for _ in range(stages)]
    for number, route in enumerate(routes(stages, rounds)):
        for j, (group, to) in enumerate(zip(route.group, route.to, strict=True)):
            table[to][(j * rounds + group) // stages] = number
    return table


def timeline(
    schedule: str, stages: int, microbatches: int, rounds: int = 1
) -> dict[tuple[int, int], tuple[str, int, int]]:
    """(slot, stage) -> (F or B, microbatch, chunk); a stage does one thing in a slot."""
    check(schedule, stages, microbatches, rounds)
    made = {}
    if schedule == "1f1b":
        slot = 0
        for phase, directions in zip(phases(stages, microbatches), ("F", "FB", "B"), strict=True):
            for tick in phase:
                for direction in directions:
                    turn = forward if direction == "F" else backward
                    for stage in range(stages):
                        work = turn(tick, stage, stages, microbatches)
                        if work.live:
                            made[slot, stage] = (direction, work.part, work.chunk)
                    slot += 1
        return made
    end = 2 * ticks(stages, microbatches, rounds) - 1
    for tick in range(ticks(stages, microbatches, rounds)):
        for stage in range(stages):
            work = forward(tick, stage, stages, microbatches, rounds)
            if work.live:
                made[tick, stage] = ("F", work.part, work.chunk)
                # Automatic differentiation goes through the ticks in reverse.
                made[end - tick, stage] = ("B", work.part, work.chunk)
    return made


def picture(schedule: str, stages: int, microbatches: int, rounds: int = 1) -> str:
    """`timeline` as text, one line per stage: F2 is forward of microbatch 2, F2b of its chunk b."""
    made = timeline(schedule, stages, microbatches, rounds)
    cells = {
        at: f"{direction}{part}" + ("abcdefghijklmnopqrstuvwxyz"[chunk] if rounds > 1 else "")
        for at, (direction, part, chunk) in made.items()
    }
    width = max(map(len, cells.values()))
    slots = 1 + max(slot for slot, _ in cells)

    def cell(slot: int, stage: int) -> str:
        return (cells[slot, stage] if (slot, stage) in cells else ".").ljust(width)

    lines = [
        f"stage {stage} | " + " ".join(cell(slot, stage) for slot in range(slots)).rstrip()
        for stage in range(stages)
    ]
    return "\n".join(lines)
