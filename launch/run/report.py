"""The end of a run: last evaluation, what it is measured against, a sample, a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from launch.run import config as configs
from launch.run import resolve, sampling
from launch.run.build import Run, eval_rows
from launch.run.decode import Sampling


def baselines(run: Run, split: str) -> dict[str, float]:
    """Simple models of the data set on the same split, by name of metric; {} where it has none for
    this objective."""
    module = resolve.module("data", run.config.data.name)
    # An objective that says which tasks' data it learns from has another loss than they have.
    if not hasattr(module, "baselines") or hasattr(run.rule.task.objective, "TASKS"):
        return {}
    data = run.config.data
    targets = data.eval_batches * eval_rows(run.config) * data.sequence_length or None
    found: dict[str, float] = module.baselines(
        configs.section(run.config, "data"), split, data.dir, targets
    )
    return found


def table(rows: dict[str, dict[str, float]]) -> str:
    """Splits as rows, metrics as columns."""
    names = list(dict.fromkeys(name for values in rows.values() for name in values))
    lines = ["".join(["split".ljust(14), *(name.rjust(24) for name in names)])]
    for split, values in rows.items():
        cells = [f"{values[n]:.4f}" if n in values else "" for n in names]
        lines.append("".join([split.ljust(14), *(cell.rjust(24) for cell in cells)]))
    return "\n".join(lines)


def sample(run: Run, state: Any) -> str | None:
    """A text that goes on from `sample.prompt`, or None where the config asks for none."""
    options = run.config.sample
    if not options.length:
        return None
    tokenizer = sampling.tokenizer_of(run)
    trained = sampling.of_run(run, run.rule.weights(state), tokenizer)
    how = Sampling(options.temperature, options.top_k, options.top_p)
    prompts = [tokenizer.encode(options.prompt)]
    made = sampling.Generation(trained, prompts, options.length, how).complete(run.config.seed)
    return options.prompt + made.texts[0]


def plot(workdir: Path, references: dict[str, float]) -> Path | None:
    """Draw the curves of `metrics.jsonl` to `curves.png`; None where there are too few points."""
    curves = _read(workdir / "metrics.jsonl")
    metric = next((m for m in ("bits_per_byte", "loss") if m in curves), None)
    if metric is None or len(curves[metric].get("train", [])) < 2:
        return None
    from matplotlib.figure import Figure  # without pyplot, whose backend is a notebook's own

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for split, style in (("train", "-"), ("validation", "o-")):
        if points := curves[metric].get(split, []):
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, style, label=split, linewidth=1.2, markersize=4)
    for name, value in references.items():
        if name.endswith(metric):
            label = name.removesuffix(metric).strip("_")
            axes.axhline(value, color="gray", linestyle="--", linewidth=1, label=label)
    heights = [value for points in curves[metric].values() for _, value in points]
    if min(heights) > 0 and max(heights) / min(heights) > 20:
        axes.set_yscale("log")
    axes.set(xlabel="step", ylabel=metric.replace("_", " "), title=workdir.name)
    axes.grid(alpha=0.3)
    axes.legend()
    path = workdir / "curves.png"
    figure.savefig(path, dpi=120)
    return path


def _read(path: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """metric -> split -> points (step, value) of a metrics file."""
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    with open(path, encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            for name in row.keys() - {"step", "time", "split"}:
                if row[name] is not None:
                    points = curves.setdefault(name, {}).setdefault(row["split"], [])
                    points.append((row["step"], row[name]))
    return curves
