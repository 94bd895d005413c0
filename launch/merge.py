"""Write a run whose low-rank factors are added to its weights, as a run of the plain model.

What it writes can be evaluated, sampled from, exported and trained like any run; training goes on
with a fresh optimizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax

from launch.run import arguments, environment, restore
from launch.run import config as configs
from launch.run.build import build
from launch.run.checkpoint import Checkpoints
from launch.run.errors import guard_input
from launch.run.state import initial_state
from launch.run.workdir import WorkDir
from nn import parallel
from nn.learning import tune

EXAMPLE = "python -m launch.merge --workdir=runs/lora --to=runs/merged"


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments.parser("merge", __doc__, EXAMPLE)
    parser.add_argument("--workdir", required=True, help="directory of a run with tune.lora_rank")
    parser.add_argument("--to", required=True, help="directory to make")
    parser.add_argument("--step", type=int, help="checkpoint to read; the newest by default")
    with guard_input():
        options, spec, overrides = arguments.parse(parser, argv)
        if spec is not None:
            raise ValueError("--config is that of the run in --workdir; only its keys can be set")
        arguments.start(options)
        run = restore.run_of(options.workdir, overrides)
        if not run.config.tune.lora_rank:
            raise ValueError(
                f"--workdir={options.workdir}: the run has no factors to merge (tune.lora_rank=0)"
            )
        if Path(options.to).exists():
            raise FileExistsError(f"--to={options.to} is there already; name a new directory")
        plain = [f"tune.{key}={value}" for key, value in configs.defaults().tune.items()]
        config = configs.override(run.config, [*plain, *overrides])
        rule = build(config, mesh=run.rule.task.mesh).rule
        work = WorkDir(options.to, jax.process_index())
        old, metadata = restore.state_of(run, options.workdir, options.step)
    places = parallel.shardings(rule.task.mesh, rule.task.variable_specs()["params"])
    params = jax.jit(tune.merge, out_shardings=places)(run.rule.weights(old))
    state = initial_state(rule, config.seed).replace(
        step=old.step, params=params, variables=old.variables, key=old.key
    )
    if state.average is not None:
        state = state.replace(average=params)
    work.open(configs.to_json(config), environment.describe())
    checkpoints = Checkpoints(work.checkpoints, config.train.keep_checkpoints)
    changed = {"config": config.to_dict(), "config_digest": configs.digest(config)}
    checkpoints.save(int(state.step), state, {**metadata, **changed})
    checkpoints.close()
    work.status(step=int(state.step))
    work.close("done", f"merged from {options.workdir}")
    if jax.process_index() == 0:
        print(f"step {int(state.step)}: {options.to}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
