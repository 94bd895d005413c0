"""Train every cell of a sweep, and look at what came out.

    run (without a word)   train what `sweep()` of the experiment yields, or a grid of --sweep flags
    status                 the table of the runs
    compare                where runs differ, their metrics and, with --to, their curves
    export                 the records as .csv or .parquet
    skip, retry            never run some cells; run some that failed or diverged again

A sweep that was stopped goes on where it was when the same command is given again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from launch.run import arguments, errors
from launch.run.errors import guard_input
from launch.sweeping import cells as cell_lists
from launch.sweeping import compare, executor, export, plan, slots, slurm, view
from launch.sweeping.store import Store
from nn import names

EXAMPLE = (
    "python -m launch.sweep --config=experiments/digits_mlp.py --workdir=runs/widths --slots=2"
)


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    verb = words.pop(0) if words and words[0] in VERBS else ""
    return VERBS[verb](words) if verb else run(words)


def run(words: Sequence[str]) -> int:
    parser = arguments.plain_parser("sweep", __doc__, EXAMPLE)
    parser.description = f"{__doc__}\nTo vary a key: --sweep.section.key=VALUE,VALUE"
    parser.add_argument("--workdir", help="directory of the sweep, made when it is not there")
    parser.add_argument(
        "--slots",
        type=int,
        default=0,
        metavar="N",
        help="runs at a time; 0: as many as accelerators allow",
    )
    parser.add_argument(
        "--devices-per-run", type=int, default=0, metavar="N", help="accelerators of each; 0: one"
    )
    parser.add_argument("--simulate", type=int, default=0, metavar="N", help="N CPU devices each")
    parser.add_argument("--time-limit", type=float, default=0.0, metavar="MINUTES", help="of a run")
    parser.add_argument("--retries", type=int, default=2, metavar="N", help="of a run that fails")
    parser.add_argument("--isolate", action="store_true", help="a process of its own for each run")
    parser.add_argument("--dry-run", action="store_true", help="print the cells, run nothing")
    parser.add_argument("--executor", default="local", help="local | slurm: tasks of a job array")
    parser.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of the tasks, as in --slurm=partition=gpu --slurm=time=240 (minutes)",
    )
    with guard_input():
        grid, rest = cell_lists.of_flags(words)
        options, spec, overrides = arguments.parse(parser, rest)
        if spec is None or (options.workdir is None and not options.dry_run):
            raise ValueError(f"--config and --workdir are needed, as in: {EXAMPLE}")
        for flag in ("time_limit", "retries"):
            if getattr(options, flag) < 0:
                raise ValueError(f"--{flag.replace('_', '-')}: must not be negative; nearest: 0")
        values = grid or cell_lists.of_experiment(spec)
        cells = cell_lists.resolve_cells(spec, overrides, values)
        if options.dry_run:
            print(plan.text(cells))
            return errors.DONE
        names.lookup("--executor", options.executor, EXECUTORS)
        store = Store(options.workdir)
        store.check()
    return EXECUTORS[options.executor](store, cells, options)


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """Fields of executor.Options."""
    simulate = [f"--simulate={options.simulate}"] if options.simulate else []
    return {
        "worker": [*slots.WORKER, *simulate],
        "time_limit": options.time_limit,
        "retries": options.retries,
        "isolate": options.isolate,
    }


def _local(store: Store, cells: Sequence[cell_lists.Cell], options: argparse.Namespace) -> int:
    with guard_input():
        environments = slots.environments(options.slots, options.devices_per_run, options.simulate)
        store.add(cells)
    how = executor.Options(environments, **_settings(options))
    live = view.Live(store, cells)
    try:
        code = executor.Queue(store, cells, how, live.report, live.tick).run()
    except executor.StartError as error:
        print(f"error: no worker can start: {error}", file=sys.stderr)
        return errors.BAD_INPUT
    ids = {cell.id for cell in cells}
    print(view.summary(r["status"] for r in store.records() if r["id"] in ids))
    print(f"results: {store.path / 'results.jsonl'}")
    return code


def _slurm(store: Store, cells: Sequence[cell_lists.Cell], options: argparse.Namespace) -> int:
    with guard_input():
        parameters = dict(text.partition("=")[::2] for text in options.slurm)
        store.add(cells)
        tasks = slurm.submit(
            store,
            cells,
            devices=options.devices_per_run,
            parallel=options.slots,
            parameters=parameters,
            options=_settings(options),
        )
    print(f"{len(tasks)} tasks submitted{': ' if tasks else ''}{', '.join(tasks)}")
    print(f"watch them with: python -m launch.sweep status --workdir={store.path}")
    return errors.DONE


EXECUTORS = {"local": _local, "slurm": _slurm}


def _parser(verb: str, doc: str, example: str) -> arguments.Parser:
    parser = arguments.plain_parser(
        f"sweep {verb}", doc, f"python -m launch.sweep {verb} {example}"
    )
    parser.add_argument("--workdir", action="append", required=True, help="directory of a sweep")
    return parser


def status(words: Sequence[str]) -> int:
    parser = _parser("status", "Print the table of the runs.", "--workdir=runs/widths")
    parser.add_argument("--json", metavar="FILE", help="write it here too")
    with guard_input():
        options = parser.parse_args(words)
        file = arguments.json_file(options)
        store = Store(options.workdir[-1])
        rows = view.rows(store)
        print(f"{view.table(rows)}\n\n{view.summary(row['state'] for row in rows)}")
        arguments.write_json(file, {"runs": store.records()})
    return errors.DONE


def compare_runs(words: Sequence[str]) -> int:
    doc = "Print where runs differ and their metrics; --workdir, once or more, of runs or sweeps."
    parser = _parser("compare", doc, "--workdir=runs/widths --to=widths.png")
    parser.add_argument("--metric", default="loss", help="that ranks them and is drawn")
    parser.add_argument("--to", metavar="FILE.png", help="draw the curves here")
    parser.add_argument("--json", metavar="FILE", help="write the table here too")
    with guard_input():
        options = parser.parse_args(words)
        file, picture = arguments.json_file(options), arguments.output_file("--to", options.to)
        if picture is not None and picture.suffix != ".png":
            raise ValueError(f"--to={options.to}: must end in .png")
        runs = compare.open_runs(options.workdir)
        rows = compare.rows(runs, options.metric)
        print(compare.text(runs, rows))
        if picture is not None:
            compare.plot(runs, options.metric, picture)
            print(f"curves: {picture}")
        arguments.write_json(file, {"runs": rows})
    return errors.DONE


def export_records(words: Sequence[str]) -> int:
    doc = "Write the records of the runs that have ended as a table."
    parser = _parser("export", doc, "--workdir=runs/widths --to=widths.csv")
    parser.add_argument("--to", required=True, metavar="FILE", help="ending in .csv or .parquet")
    with guard_input():
        options = parser.parse_args(words)
        arguments.output_file("--to", options.to)
        records = [r for name in options.workdir for r in Store(name).records() if r["final"]]
        print(f"{export.write(records, Path(options.to))} runs: {options.to}")
    return errors.DONE


def skip(words: Sequence[str]) -> int:
    return _mark("skip", "Never run some cells.", "skipped", words)


def retry(words: Sequence[str]) -> int:
    return _mark("retry", "Let the next queue run cells that have ended again.", "planned", words)


def _mark(verb: str, doc: str, state: str, words: Sequence[str]) -> int:
    parser = _parser(verb, doc, "--workdir=runs/widths --cells=3f2a,9c01")
    parser.add_argument("--cells", required=True, metavar="ID,ID", help="or the beginnings of ids")
    parser.add_argument("--reason", default=f"by launch.sweep {verb}", help="kept in the record")
    with guard_input():
        options = parser.parse_args(words)
        store = Store(options.workdir[-1])
        chosen = store.mark(options.cells.split(","), state, options.reason)
        print(f"{state}: {', '.join(chosen)}")
    return errors.DONE


VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "status": status,
    "compare": compare_runs,
    "export": export_records,
    "skip": skip,
    "retry": retry,
}


if __name__ == "__main__":
    raise SystemExit(main())
