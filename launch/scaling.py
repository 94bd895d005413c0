"""Scaling laws: plan runs, train them, fit, forecast, report.

    plan       the cells of a study, what they take, and on hardware that is not here
    run        train them, slice after slice; goes on where it was stopped
    status     the table of the runs
    fit        the laws of a study's runs, or of any table (--csv)
    forecast   the best size, data and loss of a budget
    report     report.md with its pictures, and fit.json

A study is `get_study()` of an experiment file; its keys are set with --study.key=value.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from launch.cluster import hardware
from launch.laws import analysis, conduct, cost, report, source
from launch.laws import study as studies
from launch.laws.planner import Planner, as_row
from launch.run import arguments, errors
from launch.run.build import open_data
from launch.run.errors import guard_input
from launch.sweeping import executor, slots, view
from launch.sweeping.store import Store
from nn import names
from nn.analysis.scaling_laws.parametric import FORMS
from nn.analysis.scaling_laws.table import Table

EXAMPLE = "python -m launch.scaling run --config=experiments/scaling_bytes.py --workdir=runs/laws"


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(f"{__doc__}\nexample:\n  {EXAMPLE}\n\neach has --help")
        return errors.DONE if words else errors.BAD_INPUT
    with guard_input():
        verb = names.lookup("command of launch.scaling", words[0], VERBS)
    code: int = verb(words[1:])
    return code


def _parser(verb: str, doc: str, example: str) -> arguments.Parser:
    command = f"scaling {verb}"
    return arguments.plain_parser(command, doc, f"python -m launch.{command} {example}")


def _planner(
    parser: arguments.Parser, words: Sequence[str]
) -> tuple[argparse.Namespace, Planner, str, list[str]]:
    """The arguments of `plan` and `run`."""
    changes, rest = studies.split_arguments(words)
    options, spec, overrides = arguments.parse(parser, rest)
    if spec is None:
        raise ValueError(f"--config is needed, as in: {EXAMPLE}")
    study = studies.load(spec, changes)
    return options, Planner(study, spec, overrides), spec, overrides


def plan(words: Sequence[str]) -> int:
    parser = _parser("plan", plan.__doc__ or "", "--config=experiments/scaling_bytes.py")
    parser.add_argument("--workdir", help="of a study that has begun: its centres are kept")
    parser.add_argument("--hardware", metavar="CHIP", help=f"one of {', '.join(hardware.CHIPS)}")
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="JAX devices of a run")
    parser.add_argument("--mfu", type=float, help="measured share of the peak; none: a roofline")
    parser.add_argument("--price", type=float, help="of a device for an hour")
    parser.add_argument("--json", metavar="FILE", help="write the cells here too")
    with guard_input():
        jax.config.update("jax_platforms", "cpu")  # no accelerator of this machine is touched
        options, planner, spec, overrides = _planner(parser, words)
        file = arguments.json_file(options)
        centers = {}
        if options.workdir is not None:
            kept = conduct.read_study(options.workdir)["centers"]
            centers = {float(budget): center for budget, center in kept.items()}
        found = planner.plan(centers)
        conduct.resolved(found.cells, spec, overrides)
        rows = [as_row(cell) for cell in found.cells]
        costs = None
        if options.hardware is not None:
            chip = hardware.chip(options.hardware)
            costs = cost.Costs(spec, overrides, chip, options.devices, options.mfu)
            for row, one in zip(rows, costs.all(found), strict=True):
                row |= {"seconds": one.seconds, "mesh": one.mesh, "mfu": one.mfu}
                row["GiB"] = one.memory / 2**30
    shown = [{k: v for k, v in row.items() if k not in _HIDDEN} for row in rows]
    print(view.table(shown))
    for line in found.left_out:
        print(f"left out: {line}")
    print(f"\n{len(rows)} runs, {found.flops:.4g} FLOPs")
    if costs is not None:
        print(cost.totals(costs.all(found), options.devices, options.price))
        if options.mfu is None:
            print("times are rooflines, which no run beats; --mfu takes a measured share instead")
    arguments.write_json(file, {"cells": rows, "left_out": found.left_out, "flops": found.flops})
    return errors.DONE


plan.__doc__ = "The cells of a study: sizes, data, exact FLOPs; with --hardware time and money."
_HIDDEN = ("overrides", "N_total", "N_nonemb", "rate_factor")


def run(words: Sequence[str]) -> int:
    parser = _parser("run", run.__doc__ or "", EXAMPLE.partition("run ")[2])
    parser.add_argument("--workdir", required=True, help="directory of the study")
    parser.add_argument("--slots", type=int, default=0, metavar="N", help="runs at a time; 0: auto")
    parser.add_argument("--devices-per-run", type=int, default=0, metavar="N", help="accelerators")
    parser.add_argument("--simulate", type=int, default=0, metavar="N", help="N CPU devices each")
    parser.add_argument("--time-limit", type=float, default=0.0, metavar="MINUTES", help="of a run")
    parser.add_argument("--retries", type=int, default=2, metavar="N", help="of a run that fails")
    parser.add_argument("--no-report", action="store_true", help="leave the report out")
    with guard_input():
        options, planner, spec, overrides = _planner(parser, words)
        store = Store(options.workdir)
        store.check()
        planner.unique = len(open_data(planner.config, "train")) * planner.per_row
        environments = slots.environments(options.slots, options.devices_per_run, options.simulate)
        simulate = [f"--simulate={options.simulate}"] if options.simulate else []
        how = executor.Options(
            environments=environments,
            worker=[*slots.WORKER, *simulate],
            time_limit=options.time_limit,
            retries=options.retries,
            metric=planner.study.metric,
        )

        def train(store: Store, cells: Sequence[Any]) -> int:
            live = view.Live(store, cells)
            return executor.Queue(store, cells, how, live.report, live.tick).run()

        conductor = conduct.Conduct(planner, spec, overrides, store, train)
    try:
        code = conductor.all()
    except executor.StartError as error:
        print(f"error: no worker can start: {error}", file=sys.stderr)
        return errors.BAD_INPUT
    print(view.summary(record["status"] for record in store.records()))
    if code != errors.DONE or options.no_report:
        return code
    return write_report([f"--workdir={options.workdir}"])


run.__doc__ = "Train the cells of a study, slice after slice, then write its report."


def status(words: Sequence[str]) -> int:
    parser = _parser("status", "Print the table of the runs.", "--workdir=runs/laws")
    parser.add_argument("--workdir", required=True, help="directory of the study")
    with guard_input():
        options = parser.parse_args(words)
        conduct.read_study(options.workdir)
        store = Store(options.workdir)
        rows = view.rows(store)
        print(f"{view.table(rows)}\n\n{view.summary(row['state'] for row in rows)}")
    return errors.DONE


def _data_arguments(parser: arguments.Parser) -> None:
    parser.add_argument("--workdir", help="directory of a study")
    parser.add_argument("--csv", metavar="FILE", help="a table with a header, in its place")
    parser.add_argument(
        "--columns", default="", metavar="OURS=THEIRS,...", help=f"of {', '.join(source.OURS)}"
    )
    parser.add_argument("--where", default="", help='such as "steps >= 300 and status == done"')
    parser.add_argument("--held-out", default="", help='rows of --csv to foretell, as "C > 1e19"')
    parser.add_argument("--convention", help="matmul, total, non_embedding; the study's by default")
    parser.add_argument("--form", help=f"of approach 3: {', '.join(FORMS)}; by hold-out by default")
    parser.add_argument("--delta", type=float, default=1e-3, help="Huber's; 0: absolute deviation")
    parser.add_argument("--window", type=float, default=8.0, help="of the parabolas, a factor")
    parser.add_argument("--max-budget", type=float, help="fit runs of at most so many FLOPs")
    parser.add_argument("--json", metavar="FILE", help="write the result here too")


def _analysed(
    options: argparse.Namespace,
) -> tuple[analysis.Analysis, Table, dict[str, Any] | None]:
    """What the arguments name, fitted; the held-out runs; the study."""
    if (options.workdir is None) == (options.csv is None):
        raise ValueError("give one of --workdir and --csv")
    if options.form is not None:
        names.lookup("--form", options.form, FORMS)
    study, curves = None, []
    if options.workdir is not None:
        study = conduct.read_study(options.workdir)
        store = Store(options.workdir)
        rows = source.rows_of(store.path, store.records(), study["study"]["metric"])
        table, everything, held = source.tables(rows, options.where)
        curves = source.curves_of(store.path, table)
    else:
        table = source.of_csv(options.csv, options.columns, options.where)
        held = table.filter(options.held_out) if options.held_out else table.filter("L < 0")
        if options.held_out:
            out = set(held.columns["run"].tolist())
            keep = [run not in out for run in table.columns["run"].tolist()]
            table = table.keep(_mask(keep), source.APART["held out"])
        everything = table
    if options.max_budget is not None:
        limit = options.max_budget * 1.01
        reason = f"above --max-budget={options.max_budget:g}"
        everything = everything.keep(everything.number("C") <= limit, reason)
        table = table.keep(table.number("C") <= limit, reason)
    made = analysis.analyse(
        table,
        conduct.convention_of(options.convention, study),
        options.form,
        options.delta,
        options.window,
        everything=everything,
        curves=curves,
    )
    return made, held, study


def _mask(keep: list[bool]) -> Any:
    import numpy as np

    return np.asarray(keep, bool)


def fit(words: Sequence[str]) -> int:
    parser = _parser("fit", fit.__doc__ or "", "--csv=runs.csv --columns=N=params,D=tokens,L=loss")
    _data_arguments(parser)
    with guard_input():
        options = parser.parse_args(words)
        file = arguments.json_file(options)
        made, held, _ = _analysed(options)
        checked = report.check(made, held, [])
    print(report.verdict(made, checked))
    print(report.approaches(made))
    for finding in made.findings:
        print(f"{finding.severity}: {finding.message}")
    arguments.write_json(file, report.as_json(made, checked))
    return errors.DONE


fit.__doc__ = "Fit the laws of a study's runs, or of a table from elsewhere."


def forecast(words: Sequence[str]) -> int:
    parser = _parser("forecast", forecast.__doc__ or "", "--workdir=runs/laws --budget=1e12")
    _data_arguments(parser)
    parser.add_argument("--budget", type=float, action="append", default=[], help="FLOPs")
    with guard_input():
        options = parser.parse_args(words)
        file = arguments.json_file(options)
        made, held, _ = _analysed(options)
        checked = report.check(made, held, options.budget)
        if not checked:
            raise ValueError("--budget=FLOPS is needed, once or more")
    print(report.verdict(made, checked))
    print(f"\n{report.forecasts(checked, 'loss')}")
    arguments.write_json(file, report.as_json(made, checked))
    return errors.DONE


forecast.__doc__ = "The best size, data and loss of a budget, with an interval."


def write_report(words: Sequence[str]) -> int:
    parser = _parser("report", write_report.__doc__ or "", "--workdir=runs/laws")
    _data_arguments(parser)
    parser.add_argument("--budget", type=float, action="append", default=[], help="to foretell")
    parser.add_argument("--to", metavar="DIR", help="of the report; by default WORKDIR/report")
    with guard_input():
        options = parser.parse_args(words)
        if options.to is None and options.workdir is None:
            raise ValueError("--to=DIR is needed with --csv")
        file = arguments.json_file(options)
        made, held, study = _analysed(options)
        checked = report.check(made, held, options.budget)
        folder = Path(options.to or Path(options.workdir) / "report")
        metric = study["study"]["metric"] if study else "loss"
        path = report.write(folder, made, held, checked, study and study["study"], metric)
    print(report.verdict(made, checked))
    print(f"report: {path}")
    if file is not None:
        file.write_bytes((folder / "fit.json").read_bytes())
    return errors.DONE


write_report.__doc__ = "Write report.md with its pictures, and fit.json."
VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "plan": plan,
    "run": run,
    "status": status,
    "fit": fit,
    "forecast": forecast,
    "report": write_report,
}


if __name__ == "__main__":
    raise SystemExit(main())
