"""Time ours against the peers, side by side.

Ours and each peer run in alternating rounds, each in a process of its own with the same threads;
the ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from launch.bench import report, rounds
from launch.bench.workloads import PEERS, SIZES, WORKLOADS
from launch.run import arguments
from launch.run.errors import DONE, guard_input
from nn import names

EXAMPLE = "python -m launch.benchmark --workload=decoder --peer=flax --rounds=3 --json=bench.json"
FAILED = 1  # a worker failed, or two sides did different work


def parser() -> arguments.Parser:
    made = arguments.plain_parser("benchmark", __doc__, EXAMPLE)
    made.add_argument("--workload", default="all", metavar="NAME", help="or all, the default")
    made.add_argument("--peer", default="all", metavar="NAME", help="or all, the default")
    made.add_argument("--rounds", type=int, default=5, help="default 5")
    made.add_argument("--steps", type=int, default=10, help="samples per round; default 10")
    made.add_argument("--threads", type=int, default=2, help="of each process; default 2")
    made.add_argument("--size", default="auto", help=f"{', '.join(SIZES)}; default by the device")
    made.add_argument("--json", metavar="FILE", help="write everything that was measured")
    made.add_argument("--list", action="store_true", help="print workloads and peers, run nothing")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    with guard_input():
        workloads, peers = chosen(options)
        plan = rounds.Plan(options.rounds, options.steps, options.threads, options.size)
        file = arguments.json_file(options)
    if options.list:
        print("\n".join(listing()))
        return DONE
    where = report.machine(plan)
    print(f"{where['cpu']}, {where['threads']} of {where['cores']} cores; {report.LEGEND}")
    print(report.HEADER)
    rows: list[rounds.Row] = []
    for workload in workloads:
        for row in rounds.compare(workload, peers, plan, say=_progress):
            rows.append(row)
            notes = [report.line(row), report.equal_work(row), report.utilisation(row)]
            print("\n".join(filter(None, notes)), flush=True)
    arguments.write_json(file, report.as_json(rows, plan))
    return FAILED if any(row.error and not row.missing for row in rows) else DONE


def chosen(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """The workloads and the peers asked for.

    Raises:
      ValueError: an unknown name, or a number below 1.
    """
    for name in ("rounds", "steps", "threads"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name}={getattr(options, name)}: must be at least 1; nearest: 1")
    names.lookup("--size", options.size, dict.fromkeys(("auto", *SIZES)))
    wanted = {}
    for flag, known in (("workload", WORKLOADS), ("peer", PEERS)):
        name = getattr(options, flag)
        if name != "all":
            names.lookup(f"--{flag}", name, dict.fromkeys(("all", *known)))
        wanted[flag] = list(known) if name == "all" else [name]
    workloads, peers = wanted["workload"], wanted["peer"]
    if options.workload == "all" and options.peer != "all":
        workloads = [name for name in workloads if options.peer in WORKLOADS[name].peers]
    elif options.peer != "all" and options.peer not in WORKLOADS[options.workload].peers:
        choices = ", ".join(WORKLOADS[options.workload].peers)
        raise ValueError(
            f"--peer={options.peer}: not a peer of --workload={options.workload}; "
            f"choose from {choices}"
        )
    return workloads, peers


def listing() -> list[str]:
    """What `--list` prints."""
    lines = []
    for name, workload in WORKLOADS.items():
        lines.append(f"{name:<26}{workload.about}; peers: {', '.join(workload.peers)}")
        lines += [f"  {size:<13}{workload.sizes[size]}" for size in SIZES]
    return lines


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
