"""Measure a trained model on a split of its data set."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from launch.run import arguments, report, restore
from launch.run.build import loader, open_data
from launch.run.errors import guard_input
from launch.run.evaluation import Evaluation

EXAMPLE = "python -m launch.evaluate --workdir=runs/bytes_gpt --split=test --json=test.json"


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments.parser("evaluate", __doc__, EXAMPLE)
    parser.add_argument("--workdir", required=True, help="directory of a run")
    parser.add_argument("--split", default="test", choices=("train", "validation", "test"))
    parser.add_argument("--step", type=int, help="checkpoint to read; the newest by default")
    parser.add_argument("--json", metavar="FILE", help="write the result here too")
    with guard_input():
        options, spec, overrides = arguments.parse(parser, argv)
        if spec is not None:
            raise ValueError("--config is that of the run in --workdir; only its keys can be set")
        file = arguments.json_file(options)
        arguments.start(options)
        run = restore.run_of(options.workdir, overrides)
        state, _ = restore.state_of(run, options.workdir, options.step)
        data = loader(run.config, open_data(run.config, options.split), train=False)
    values = Evaluation(run).means(state, data) | report.baselines(run, options.split)
    if jax.process_index() == 0:
        print(f"step {int(state.step)}\n{report.table({options.split: values})}")
        result = {"step": int(state.step), "split": options.split, **values}
        arguments.write_json(file, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
