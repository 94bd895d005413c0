"""Compile a train step for a machine that is not there, and say whether it fits and how fast it is.

Memory by kind, FLOPs, collectives by mesh axis, what overlaps, a roofline.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from launch.cluster import hardware, topology
from launch.cluster.hardware import Chip
from launch.cluster.topology import Topology
from launch.run import aot, arguments, compile_report
from launch.run import config as configs
from launch.run.build import build
from launch.run.errors import guard_input

EXAMPLE = (
    "python -m launch.compile --config=experiments/llama3.py:8b --topology=v5p:4x4x4 "
    "--config.mesh.fsdp=32 --config.mesh.data=2 --config.data.batch_size=64 --json=8b.json"
)


def parser() -> arguments.Parser:
    made = arguments.plain_parser("compile", __doc__, EXAMPLE)
    made.add_argument("--topology", metavar="NAME", help=f"such as {', '.join(topology.EXAMPLES)}")
    made.add_argument(
        "--hardware", metavar="NAME", help="tpu, gpu or cpu: what --topology must be; or the chip "
        "that a simulated machine is compared with"
    )  # fmt: skip
    made.add_argument(
        "--no-async", action="store_true", help="leave out the flags for asynchronous collectives"
    )
    made.add_argument(
        "--xla", default="", metavar="FLAG=VALUE,...", help="further options of the compiler"
    )
    made.add_argument("--json", metavar="FILE", help="write the report here too")
    made.add_argument(
        "--list-topologies", action="store_true", help="print the kinds of machines and leave"
    )
    return made


def machine(options: argparse.Namespace) -> tuple[Topology, Chip | None]:
    """The machine, and the chip whose limits count. Raises ValueError where flags do not fit."""
    if options.topology is None:
        raise ValueError(f"--topology is needed, as in: {EXAMPLE}")
    found = topology.parse(options.topology)
    named = options.hardware
    if named is None or named == found.platform:
        return found, found.chip
    if named in ("tpu", "gpu", "cpu"):
        raise ValueError(
            f"--hardware={named} with --topology={found.name}, which is {found.platform}; "
            f"nearest: --hardware={found.platform}"
        )
    chip = hardware.chip(named)
    if found.chip not in (None, chip):
        raise ValueError(
            f"--hardware={named} with --topology={found.name}: only a cpu:N topology can be "
            f"compared with another chip; nearest: --hardware={found.row}"
        )
    return found, chip


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    with guard_input():
        options, spec, overrides = arguments.parse(parser(), words)
        if options.list_topologies:
            print(topology.listing())
            return 0
        if spec is None:
            raise ValueError(f"--config and --topology are needed, as in: {EXAMPLE}")
        file = arguments.json_file(options)
        where, chip = machine(options)
        config = configs.load(spec, overrides)
        flags = aot.compiler_options(where.platform, not options.no_async, options.xla)
        run = build(config, topology.devices(where))
        command = ["python", "-m", "launch.compile", *_kept(words)]
        found = compile_report.report(command, run, where, chip, flags)
    print(compile_report.text(found))
    arguments.write_json(file, found)
    return 0


def _kept(words: Sequence[str]) -> list[str]:
    """The command line without the place of its report, which differs from machine to machine."""
    before = ("", *words)
    return [
        word
        for last, word in zip(before, words, strict=False)
        if last != "--json" and word != "--json" and not word.startswith("--json=")
    ]


if __name__ == "__main__":
    raise SystemExit(main())
