"""Runs beside each other: where their configs differ, what came out, and their curves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.run import config as configs
from launch.run import keys, metrics
from launch.run.loop import HIGHER_IS_BETTER
from launch.sweeping import cells as cell_lists
from launch.sweeping import view
from launch.sweeping.store import Store
from nn import names

LEGEND = 12  # runs that a legend still helps to tell apart
COLUMNS = 6  # keys of the config that fit beside metrics


@dataclasses.dataclass(frozen=True)
class Compared:
    """name: of the run's directory, or its path where several have one name.

    config: flat. lines: of its metrics.jsonl.
    """

    name: str
    config: dict[str, Any]
    lines: list[dict[str, Any]]

    def last(self, split: str) -> dict[str, Any]:
        """The last metrics of a split, without its speed; {} where there are none."""
        found = [line for line in self.lines if line["split"] == split]
        return found[-1] if found else {}

    def curve(self, split: str, metric: str) -> list[tuple[int, float]]:
        """Points (step, value) of a metric, those that are finite."""
        rows = [line for line in self.lines if line["split"] == split and metric in line]
        return [(row["step"], row[metric]) for row in rows if row[metric] is not None]


def open_runs(directories: Sequence[str]) -> list[Compared]:
    """The runs in directories, each that of a run or of a sweep; those that never began are left.

    Raises FileNotFoundError where a directory is neither, or none has begun.
    """
    paths: list[Path] = []
    for name in directories:
        path = Path(name).expanduser()
        if (path / "sweep.json").is_file():
            store = Store(path)
            paths += [store.run(record["id"]) for record in store.records()]
        elif (path / "config.json").is_file():
            paths.append(path)
        else:
            raise FileNotFoundError(
                f"--workdir={name}: neither a sweep (sweep.json) nor a run (config.json) is there"
            )
    begun = [path for path in paths if (path / metrics.FILE).is_file()]
    if not begun:
        raise FileNotFoundError(f"--workdir={','.join(directories)}: no run has begun yet")
    alone = len({path.name for path in begun}) == len(begun)
    return [_open(path, path.name if alone else str(path)) for path in dict.fromkeys(begun)]


def _open(path: Path, name: str) -> Compared:
    config = configs.from_json((path / "config.json").read_text("utf-8"))
    return Compared(name, keys.flatten(config.to_dict()), metrics.read(path / metrics.FILE))


def rows(runs: Sequence[Compared], metric: str) -> list[dict[str, Any]]:
    """A row per run, the best value of `metric` first: what differs, then metrics of the splits.

    Raises ValueError where no run has such a metric.
    """
    varied = cell_lists.differing([run.config for run in runs])
    measured = [name for run in runs for name in run.last("validation") | run.last("train")]
    names.lookup("--metric", metric, dict.fromkeys(set(measured) - {*metrics.RESERVED}))
    found = []
    for run in runs:
        row: dict[str, Any] = {"run": run.name}
        row |= {name: keys.render(run.config[name]) for name in varied if name in run.config}
        validation = run.last("validation")
        row["step"] = (validation or run.last("train"))["step"]
        for split in ("train", "validation", "test"):
            row[f"{split} {metric}"] = run.last(split).get(metric)
        others = [n for n in validation if n not in (*metrics.RESERVED, metric)]
        found.append(row | {f"validation {n}": validation[n] for n in others})
    sign = -1 if metric in HIGHER_IS_BETTER else 1

    def rank(row: dict[str, Any]) -> tuple[bool, float]:
        value = row[f"validation {metric}"]
        return value is None, 0.0 if value is None else sign * value

    return sorted(found, key=rank)


def text(runs: Sequence[Compared], found: Sequence[dict[str, Any]]) -> str:
    """The rows as a table; where configs differ in much, that as one of its own, a key per row."""
    varied = cell_lists.differing([run.config for run in runs])
    if len(varied) <= COLUMNS:
        return view.table(found)
    by_name = {run.name: run.config for run in runs}
    settings = [
        {"": key, **{row["run"]: row[key] for row in found if key in by_name[row["run"]]}}
        for key in varied
    ]
    measured = [{name: x for name, x in row.items() if name not in varied} for row in found]
    return f"{view.table(settings)}\n\n{view.table(measured)}"


def plot(runs: Sequence[Compared], metric: str, path: Path) -> None:
    """Draw the curves of a metric, a colour per run from the best to the worst.

    Thin lines are of training, those with dots of validation. The legend names the best `LEGEND`.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure  # without pyplot, whose backend is a notebook's own

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    varied = cell_lists.differing([run.config for run in runs])
    order = [row["run"] for row in rows(runs, metric)]
    ranked = sorted(runs, key=lambda run: order.index(run.name))
    colors = colormaps["viridis"].resampled(max(len(runs), 2))
    heights: list[float] = []
    for number, run in enumerate(ranked):
        label = (cell_lists.label(run.config, varied) or run.name) if number < LEGEND else "_"
        for split, style, faint in (("validation", "o-", 1.0), ("train", "-", 0.4)):
            if points := run.curve(split, metric):
                steps, values = zip(*points, strict=True)
                heights += values
                look: dict[str, Any] = {"alpha": faint, "linewidth": 1.2, "markersize": 4}
                axes.plot(steps, values, style, color=colors(number), label=label, **look)
                label = "_"  # once in the legend
    if heights and min(heights) > 0 and max(heights) / min(heights) > 20:
        axes.set_yscale("log")
    axes.set(xlabel="step", ylabel=metric.replace("_", " "))
    axes.set_title("validation (dots) and training (thin)", fontsize="medium")
    axes.grid(alpha=0.3)
    many = len(runs) > LEGEND
    title = f"the best {LEGEND} of {len(runs)}" if many else None
    axes.legend(fontsize="small", title=title, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=120)
