"""Train a model from a config.

Config, mesh, data, state, steps, last evaluation. A run that was stopped goes on where it was when
the same command is given again.
"""

from __future__ import annotations

from collections.abc import Sequence

from launch.run import arguments, session
from launch.run import config as configs
from launch.run.build import build
from launch.run.errors import guard_input

EXAMPLE = "python -m launch.train --config=experiments/bytes_gpt.py --workdir=runs/bytes_gpt"


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments.parser("train", __doc__, EXAMPLE)
    parser.add_argument("--workdir", help="directory of the run, made when it is not there")
    parser.add_argument("--profile", help="trace some steps, such as 'steps 10-15'")
    with guard_input():
        options, spec, overrides = arguments.parse(parser, argv)
        if spec is None or options.workdir is None:
            raise ValueError(f"--config and --workdir are needed, as in: {EXAMPLE}")
        config = configs.load(spec, overrides)
        arguments.start(options)
        run = build(config)
        loop = session.open_run(run, options.workdir, options.profile)
    return session.train(loop)


if __name__ == "__main__":
    raise SystemExit(main())
