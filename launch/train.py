"""Train a model from a config.

Config, mesh, data, state, steps, last evaluation. A run that was stopped goes on where it was when
the same command is given again.
"""

from __future__ import annotations

from collections.abc import Sequence

from launch.run import arguments, restore, session
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
        if options.workdir is None:
            raise ValueError(f"--workdir is needed, as in: {EXAMPLE}")
        if spec is None:  # that of a run which is there already, or was imported
            config = restore.config_of(options.workdir, overrides)
        else:
            config = configs.load(spec, overrides)
        arguments.start(options)
        run = build(config)
        loop = session.open_run(run, options.workdir, options.profile)
    return session.train(loop)


if __name__ == "__main__":
    raise SystemExit(main())
