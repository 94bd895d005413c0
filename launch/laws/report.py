"""The report of a study: `report.md` with the verdict first, its pictures, and `fit.json`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launch.laws import pictures
from launch.laws.analysis import LEVEL, Analysis, Array, Forecast, Minima
from launch.laws.pictures import NAMES
from nn.analysis import scaling_laws as laws
from nn.analysis.scaling_laws import holdout
from nn.analysis.scaling_laws.table import Table


@dataclasses.dataclass(frozen=True)
class Checked:
    """A forecast beside what was trained: the best of the held-out runs of that budget."""

    forecast: Forecast
    trained: float | None
    runs: int

    @property
    def error(self) -> float | None:
        """Of the forecast, relative."""
        return None if self.trained is None else self.forecast.L / self.trained - 1


def check(made: Analysis, held: Table, budgets: Iterable[float]) -> list[Checked]:
    """The forecast of each budget, those of the held-out runs and further ones."""
    groups = held.columns["group"] if len(held) else np.asarray([])
    known = {float(group): held.number("L")[groups == group] for group in np.unique(groups)}
    found = []
    for budget in sorted({*known, *budgets}):
        losses = known.get(budget, np.asarray([]))
        best = float(losses.min()) if len(losses) else None
        found.append(Checked(made.forecast(budget), best, len(losses)))
    return found


def verdict(made: Analysis, checked: Sequence[Checked]) -> str:
    """The first line."""
    if made.red:
        return f"NOT TO BE EXTRAPOLATED: {made.red[0].message}"
    chosen = made.chosen
    name = NAMES["isoflop"] if isinstance(chosen, Minima) else chosen.name
    text = f"{name}, chosen by hold-out" if math.isfinite(chosen.error) else name
    error = chosen.error if isinstance(chosen, Minima) else chosen.minima_error
    if made.allocator is not chosen:
        sizes = made.allocator
        text += f"; N* by {NAMES['isoflop'] if isinstance(sizes, Minima) else sizes.name}"
    if math.isfinite(error):
        text += f" (lowest losses of later slices foretold within {error:.2%})"
    for one in checked:
        f = one.forecast
        text += f"; at {f.C:.3g} FLOPs N* {f.N:.3g}, D* {f.D:.3g}, loss {f.L:.4f} "
        text += f"[{f.low:.4f}, {f.high:.4f}]"
        if one.trained is not None:
            text += f", trained {one.trained:.4f} ({one.error:+.2%})"
    return text


def write(
    folder: Path,
    made: Analysis,
    held: Table,
    checked: Sequence[Checked],
    study: Mapping[str, Any] | None = None,
    metric: str = "loss",
) -> Path:
    """All files of a report. Returns that of the text."""
    folder.mkdir(parents=True, exist_ok=True)
    forecasts = [one.forecast for one in checked]
    drawn = pictures.draw(folder, made, held, forecasts, metric)
    result = as_json(made, checked)
    (folder / "fit.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    text = markdown(made, held, checked, drawn, study, metric)
    (folder / "report.md").write_text(text, "utf-8")
    return folder / "report.md"


def as_json(made: Analysis, checked: Sequence[Checked]) -> dict[str, Any]:
    """Every number at full precision; what is no number is null."""
    found: dict[str, Any] = {
        "input": digest(made.table),
        "convention": made.view.convention,
        "runs": len(made.table),
        "excluded": [dataclasses.asdict(x) for x in made.table.excluded],
        "findings": [dataclasses.asdict(x) for x in made.findings],
        "refused": dict(made.refused),
        "forecasts": [
            dataclasses.asdict(x.forecast) | {"trained": x.trained, "error": x.error}
            for x in checked
        ],
    }
    if made.minima is not None:
        fit = made.minima.fit
        found["isoflop"] = {
            "a": fit.a,
            "a_se": fit.a_se,
            "log_k": fit.log_k,
            "b": fit.b,
            "log_kd": fit.log_kd,
            "bias_bound": fit.bias,
            "loss_slope": made.minima.slope,
            "loss_intercept": made.minima.intercept,
            "holdout_error": made.minima.error,
            "minima": [
                {k: v for k, v in vars(m).items() if not k.endswith("draws")} for m in fit.minima
            ],
            "rejected": [dataclasses.asdict(x) for x in fit.rejected],
        }
    if made.parametric is not None:
        p = made.parametric
        found["parametric"] = {
            "form": p.fit.form.name,
            "equation": p.fit.form.equation,
            "pins": dict(p.fit.pins),
            "delta": p.fit.delta,
            "parameters": p.fit.parameters,
            "intervals": {k: dataclasses.asdict(v) for k, v in p.boot.parameters(LEVEL).items()},
            "starts": p.fit.starts,
            "starts_at_optimum": p.fit.share,
            "converged": p.fit.converged,
            "condition": p.fit.sensitivity.condition,
            "holdout_error": p.error,
            "candidates": [
                {"form": c.form, "pins": dict(c.pins), "holdout_error": c.error} for c in p.choices
            ],
            "leave_future_out": [dataclasses.asdict(x) for x in p.future],
            "drop_k": laws.drop_k(p.fit),
            "delta_sweep": laws.delta_sweep(p.fit),
        }
    found["conventions"] = {
        name: {"a": s.a, "a_se": s.a_se, "a_isoflop": s.isoflop.a if s.isoflop else None}
        for name, s in made.sides.items()
    }
    return _finite(found)


def digest(table: Table) -> str:
    """SHA-256 of the fitted rows."""
    made = hashlib.sha256()
    for name in sorted(table.columns):
        made.update(name.encode())
        made.update("\n".join(map(repr, table.columns[name].tolist())).encode())
    return made.hexdigest()


def _finite(value: Any) -> Any:
    """With None for what JSON cannot say, and plain numbers for those of numpy."""
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def markdown(
    made: Analysis,
    held: Table,
    checked: Sequence[Checked],
    drawn: Mapping[str, str],
    study: Mapping[str, Any] | None,
    metric: str,
) -> str:
    parts = [f"# Scaling laws\n\n**{verdict(made, checked)}**"]
    parts.append(forecasts(checked, metric))
    if made.parametric is not None and made.parametric.future:
        parts.append(_future(made))
    parts.append(approaches(made))
    if made.findings:
        rows = [f"- **{f.severity}** {f.message}" for f in made.findings]
        parts.append("## Warnings\n\n" + "\n".join(rows))
    parts.append("\n\n".join(f"![{what}]({name})\n\n*{what}*" for name, what in drawn.items()))
    parts.append(_excluded(made.table))
    parts.append(_checklist(made, study, metric))
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def forecasts(checked: Sequence[Checked], metric: str) -> str:
    if not checked:
        return ""
    rows = []
    for one in checked:
        f = one.forecast
        trained = ["", ""] if one.trained is None else [f"{one.trained:.4f}", f"{one.error:+.2%}"]
        band = f"{f.L:.4f} [{f.low:.4f}, {f.high:.4f}]"
        rows.append([f"{f.C:.3g}", f"{f.N:.4g}", f"{f.D:.4g}", f"{f.D / f.N:.3g}", band, *trained])
    head = ["FLOPs", "N*", "D*", "D*/N*", f"{metric} [{LEVEL:.0%}]", "trained", "error"]
    return "## Forecasts\n\n" + _table(head, rows)


def _future(made: Analysis) -> str:
    assert made.parametric is not None
    rows = [
        [f"{x.trained_to:.3g}", f"{x.C:.3g}", str(x.rows), f"{x.error:+.2%}", f"{x.worst:+.2%}",
         f"{x.covered:.0%}"]
        for x in made.parametric.future
    ]  # fmt: skip
    with_noise, law = holdout.coverage(made.parametric.future)
    text = (
        f"Signed errors of budgets that the law had not seen. Its 95 % intervals held "
        f"{with_noise:.0%} of those runs; the parameters' spread alone would have held {law:.0%}."
    )
    head = ["fitted to", "foretold", "runs", "mean error", "worst", "inside"]
    return f"## Leave future out\n\n{text}\n\n{_table(head, rows)}"


def approaches(made: Analysis) -> str:
    lines = []
    if made.envelope is not None:
        e = made.envelope
        lines.append(f"- envelope: N* ~ C^{e.a:.3f}, D* ~ C^{e.b:.3f}, of training losses")
    if made.minima is not None:
        m, fit = made.minima, made.minima.fit
        lines.append(
            f"- IsoFLOP parabolas: N* ~ C^{fit.a:.3f} (SE {fit.a_se:.3f}), D* ~ C^{fit.b:.3f}, "
            f"L* ~ C^{m.slope:.4f}; a parabola over these windows misplaces N* by up to "
            f"{abs(fit.bias):.1%}; hold-out error of minima {m.error:.2%}"
        )
    if made.parametric is not None:
        p = made.parametric
        values = p.boot.parameters(LEVEL)
        text = ", ".join(
            f"{k} {v.estimate:.5g} [{v.low:.4g}, {v.high:.4g}]" for k, v in values.items()
        )
        lines.append(
            f"- {p.name}: {p.fit.form.equation}; {text}; Huber's delta {p.fit.delta:g}, "
            f"{p.fit.share:.0%} of {p.fit.starts} starts at the optimum; hold-out error "
            f"{p.error:.2%}, of minima {p.minima_error:.2%}"
        )
        lines += [
            f"  - candidate {c.form}{f' with {dict(c.pins)}' if c.pins else ''}: hold-out error "
            f"{c.error:.2%}"
            for c in p.choices
        ]
    lines += [f"- {NAMES.get(name, name)}: refused. {why}" for name, why in made.refused.items()]
    rows = [
        [n, f"{s.a:.3f} ± {s.a_se:.3f}", f"{s.isoflop.a:.3f}" if s.isoflop else s.why_no_isoflop]
        for n, s in made.sides.items()
    ]
    text = "## Approaches\n\n" + "\n".join(lines)
    if rows:
        head = ["parameters counted", "a, parametric", "a, IsoFLOP"]
        text += "\n\nThe exponent of N* under each way of counting:\n\n" + _table(head, rows)
    return text


def _excluded(table: Table) -> str:
    if not table.excluded:
        return ""
    rows = [[x.run, x.reason] for x in table.excluded]
    return "## Runs left out\n\n" + _table(["run", "reason"], rows)


def _checklist(made: Analysis, study: Mapping[str, Any] | None, metric: str) -> str:
    """The questions of Li et al. 2025, "(Mis)fitting", answered from the data."""
    view, table = made.view, made.table
    p = made.parametric

    def span(values: Array) -> str:
        return f"{values.min():.3g} to {values.max():.3g} ({len(np.unique(values))} values)"

    rows = [
        ("form", p.fit.form.equation if p else "power laws through minima of parabolas"),
        ("N", f"{view.convention}: {span(view.N)}"),
        ("D", f"units of data trained on: {span(view.D)}"),
        ("C", "exact, counted on each run's program" if view.exact_flops else "6 N D"),
        ("compute of the runs", span(view.C)),
        ("tokens per parameter", span(view.D / view.N)),
        ("loss", f"{metric} of the validation split at the end of each run, no checkpoint between"),
        ("runs fitted, left out", f"{len(table)}, {len(table.excluded)}"),
    ]
    for name, label in (("lr", "learning rates"), ("batch", "units per step"), ("steps", "steps")):
        if table.has(name):
            rows.append((label, span(table.number(name))))
    if table.has("seed"):
        sigma = laws.tuning.seed_sigma(view) if hasattr(laws, "tuning") else None
        spread = "" if sigma is None else f"; noise of a seed {sigma:.2%} of the loss"
        rows.append(("seeds", span(table.number("seed")) + spread))
    if study is not None:
        kept = {k: v for k, v in study.items() if v not in ((), [], "", 0, 0.0)}
        rows.append(("rule of hyper-parameters", str(study["rule"])))
        rows.append(("study", ", ".join(f"{k}={v}" for k, v in kept.items())))
    if p is not None:
        rows += [
            ("objective", f"sum of Huber's loss of ln L, delta {p.fit.delta:g}"),
            ("optimiser", f"Levenberg-Marquardt from {p.fit.starts} starts, {p.fit.share:.0%} at "
                          f"the optimum, {'converged' if p.fit.converged else 'NOT converged'}"),
            ("uncertainty", f"{len(p.boot.phi_SP)} resamples of runs, and residuals"),
            ("condition of the derivatives", f"{p.fit.sensitivity.condition:.3g}"),
        ]  # fmt: skip
    return "## Checklist\n\n" + _table(["question", "answer"], [[a, b] for a, b in rows])
