"""Which meshes fit a machine, how fast each would be and what binds it: from shapes, in seconds.

The step is traced for one device of each kind of mesh; nothing is compiled and no device is used.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import jax
from ml_collections import FrozenConfigDict

from launch.cluster import hardware
from launch.run import arguments, plan_report, planning
from launch.run import config as configs
from launch.run.errors import guard_input
from nn import names, parallel
from nn.parallel.mesh import compiled_for

EXAMPLE = "python -m launch.plan --config=experiments/llama3.py:8b --hardware=v5p --devices=512"


def parser() -> arguments.Parser:
    made = arguments.plain_parser("plan", __doc__, EXAMPLE)
    made.add_argument("--hardware", metavar="CHIP", help=f"one of {', '.join(hardware.CHIPS)}")
    made.add_argument("--devices", type=int, metavar="N", help="JAX devices of that chip")
    made.add_argument("--mesh", default="search", help="search | as-config: only the config's own")
    made.add_argument("--top", type=int, default=10, metavar="N", help="meshes to print")
    made.add_argument(
        "--programs", type=int, default=8, metavar="N", help="steps to trace, half a second each"
    )
    made.add_argument("--json", metavar="FILE", help="write the result here too")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    with guard_input():
        options, spec, overrides = arguments.parse(parser(), argv)
        if spec is None or options.hardware is None or options.devices is None:
            raise ValueError(f"--config, --hardware and --devices are needed, as in: {EXAMPLE}")
        file = arguments.json_file(options)
        chip = hardware.chip(options.hardware)
        for flag in ("devices", "top", "programs"):
            if getattr(options, flag) < 1:
                raise ValueError(f"--{flag}={getattr(options, flag)}: at least 1; nearest: 1")
        names.lookup("--mesh", options.mesh, dict.fromkeys(("search", "as-config")))
        jax.config.update("jax_platforms", "cpu")  # no accelerator of this machine is touched
        config = configs.load(spec, overrides)
        start = time.perf_counter()
        with compiled_for(chip.platform):
            planner, found = planned(config, chip, options)
        taken = time.perf_counter() - start
    lines: list[str] = []
    if found.fitting:
        best = found.fitting[0]
        lines = plan_report.commands(options.hardware, planner, best, spec, overrides)
    print(plan_report.text(planner, found, options.top, lines))
    print(f"\nplanned in {taken:.1f} s from {found.traces} traced steps")
    result = plan_report.as_json(planner, found, options.top)
    result |= {"hardware": options.hardware, "seconds": taken, "commands": lines}
    arguments.write_json(file, result)
    return 0


def planned(
    config: FrozenConfigDict, chip: hardware.Chip, options: argparse.Namespace
) -> tuple[planning.Planner, planning.Plan]:
    """The planner, and the meshes that it found or the one of the config."""
    planner = planning.Planner(config, planning.machine(chip, options.devices), options.devices)
    if options.mesh == "search":
        return planner, planning.search(planner, options.programs)
    wanted = {axis: config.mesh[axis] for axis in parallel.AXES}
    return planner, planning.only(planner, parallel.mesh_shape(wanted, options.devices))


if __name__ == "__main__":
    raise SystemExit(main())
