"""Runs that were not at their best: a law fitted to them describes the mistakes.

Most of the disagreement between published laws came from runs like these (Porian et al. 2024,
arXiv:2406.19146: warm-up longer than small runs, one schedule for all lengths, one learning rate
for all sizes moved the exponent from 0.50 to 0.84). Each detector reads a Table or View and returns
findings; a column that is not there is no finding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from scipy import stats

from nn.analysis.scaling_laws.findings import Finding
from nn.analysis.scaling_laws.parametric import Fit
from nn.analysis.scaling_laws.table import Array, Labels, Mask, Table, View

MAX_WARMUP = 0.1  # of the tokens
MIN_STEPS = 300
MAX_EPOCHS = 4.0
SAME = 0.05  # sizes, tokens closer than this are one cell


def under_tuned(view: View, sigma: float | None = None) -> list[Finding]:
    """All detectors on a table. `sigma`: see `not_monotone`."""
    found = [*edge_of_grid(view, "lr"), *edge_of_grid(view, "batch")]
    found += [*long_warmup(view.table), *few_steps(view.table), *many_epochs(view.table)]
    return [*found, *not_decayed(view.table), *not_monotone(view, sigma)]


def edge_of_grid(view: View, knob: str) -> list[Finding]:
    """Cells (one size, one number of tokens) whose best `knob`, lr or batch, ends its grid."""
    if not view.table.has(knob):
        return []
    values, found = view.table.number(knob), []
    for rows in _cells(view.N, view.D):
        grid = np.unique(values[rows][np.isfinite(values[rows])])
        best = values[rows][np.argmin(view.L[rows])]
        if len(grid) >= 2 and best in (grid[0], grid[-1]):
            end, way = ("smallest", "smaller") if best == grid[0] else ("largest", "larger")
            where = f"N = {view.N[rows[0]]:.3g}, D = {view.D[rows[0]]:.3g}"
            message = (
                f"{where}: the best {knob}, {best:.3g}, is the {end} of the {len(grid)} tried: the "
                f"optimum lies outside; add a {way} one"
            )
            found.append(Finding(f"{knob}_edge", "red", message))
    return found


def long_warmup(table: Table) -> list[Finding]:
    """Warm-up of more than a tenth of the tokens: small budgets then train at a rate too low."""
    if not (table.has("warmup") and table.has("D")):
        return []
    share = table.number("warmup") / table.number("D")
    return _rows(
        table,
        share > MAX_WARMUP,
        "warmup",
        lambda i: (
            f"its warm-up takes {share[i]:.0%} of its tokens (at most {MAX_WARMUP:.0%}): shorten "
            f"it with the run"
        ),
    )


def few_steps(table: Table) -> list[Finding]:
    """Fewer than 300 steps: the loss is limited by the number of updates, not by N or D."""
    if not table.has("steps"):
        return []
    steps = table.number("steps")
    return _rows(
        table,
        steps < MIN_STEPS,
        "steps",
        lambda i: (
            f"{steps[i]:.0f} steps (at least {MIN_STEPS}): its loss is limited by updates; take a "
            f"smaller batch"
        ),
    )


def many_epochs(table: Table) -> list[Finding]:
    """More than four epochs: repeated tokens are worth less (Muennighoff et al. 2023)."""
    if not (table.has("unique_tokens") and table.has("D")):
        return []
    epochs = table.number("D") / table.number("unique_tokens")
    return _rows(
        table,
        epochs > MAX_EPOCHS,
        "epochs",
        lambda i: (
            f"{epochs[i]:.1f} epochs (at most {MAX_EPOCHS:g}): repeated tokens count less than D "
            f"says; fit form='repeated' or leave it out"
        ),
    )


def not_decayed(table: Table) -> list[Finding]:
    """Rows whose `lr_decayed` is 0: points in the middle of a schedule lie too high."""
    if not table.has("lr_decayed"):
        return []
    return _rows(
        table,
        table.number("lr_decayed") == 0,
        "not_decayed",
        lambda i: "its learning rate had not decayed at this point: compare decayed losses only",
    )


def seed_sigma(view: View) -> float | None:
    """Standard deviation of ln L between seeds, pooled over cells that differ in nothing else."""
    squares, freedom = 0.0, 0
    settings = [view.table.number(k) for k in ("lr", "batch", "warmup") if view.table.has(k)]
    for rows in _cells(view.N, view.D, *settings, tolerance=1e-6):
        log_loss = np.log(view.L[rows])
        squares += float(((log_loss - log_loss.mean()) ** 2).sum())
        freedom += len(rows) - 1
    return float(np.sqrt(squares / freedom)) if freedom and view.table.has("seed") else None


def not_monotone(view: View, sigma: float | None = None) -> list[Finding]:
    """Loss that rises with N at fixed D, or with D at fixed N, by more than 3 sigma.

    `sigma`: of ln L between seeds; without it, what the table's repeated seeds show. Where there
    are none, the one finding says so: three seeds of one middle cell suffice.
    """
    sigma = seed_sigma(view) if sigma is None else sigma
    if sigma is None:
        message = "noise between seeds was not measured: run 3 seeds of one cell in the middle"
        return [Finding("no_seeds", "amber", message)]
    found = []
    for name, along, fixed, other in (("N", view.N, view.D, "D"), ("D", view.D, view.N, "N")):
        for rows in _cells(fixed):
            best = [min(cell, key=lambda i: view.L[i]) for cell in _cells(along[rows], rows=rows)]
            best.sort(key=lambda i: along[i])
            for low, high in zip(best, best[1:], strict=False):
                rise = float(np.log(view.L[high] / view.L[low]))
                if rise > 3 * np.sqrt(2) * sigma:
                    message = (
                        f"{other} = {fixed[low]:.3g}: from {name} = {along[low]:.3g} to "
                        f"{along[high]:.3g} the loss rises from {view.L[low]:.4g} to "
                        f"{view.L[high]:.4g}, {rise / sigma / np.sqrt(2):.1f} standard errors: the "
                        f"larger run is not tuned (or diverged)"
                    )
                    found.append(Finding(f"not_monotone_{name}", "red", message))
    return found


def residual_trends(fit: Fit, level: float = 1e-3) -> list[Finding]:
    """Settings that the law does not know but its residuals follow (Spearman's correlation)."""
    found, table = [], fit.view.table
    for name in ("lr", "batch", "steps", "warmup"):
        values = table.number(name) if table.has(name) else np.zeros(0)
        known = np.isfinite(values)
        if known.sum() < 8 or np.ptp(values[known]) == 0:
            continue
        rho, p = stats.spearmanr(values[known], -fit.residuals[known])
        if p < level:
            message = (
                f"losses follow {name} beyond the law (rank correlation {rho:+.2f}, p = {p:.1g}): "
                f"the runs differ in more than N and D"
            )
            found.append(Finding(f"trend_{name}", "amber", message))
    return found


def _rows(table: Table, wrong: Mask, code: str, say: Callable[[int], str]) -> list[Finding]:
    """One finding per row that is wrong."""
    runs = table.columns["run"]
    return [Finding(code, "amber", f"{runs[i]}: {say(int(i))}") for i in np.flatnonzero(wrong)]


def _cells(*keys: Array, rows: Labels | None = None, tolerance: float = SAME) -> Iterator[Labels]:
    """Rows whose keys agree within the tolerance (chained along sorted values), cell by cell."""
    count = len(keys[0])
    rows = np.arange(count) if rows is None else rows
    labels = np.zeros(count, np.int64)
    for key in keys:
        order = np.argsort(key, kind="stable")
        logs = np.log(np.where(key > 0, key, 1e-300))[order]
        number = np.concatenate([[0], np.cumsum(np.diff(logs) > np.log1p(tolerance))])
        group = np.empty(count, np.int64)
        group[order] = number
        labels = labels * count + group
        labels = np.unique(labels, return_inverse=True)[1].reshape(-1)
    for label in range(labels.max() + 1):
        yield rows[labels == label]
