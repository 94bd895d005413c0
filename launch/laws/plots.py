"""The pictures of a scaling study, each drawn from plain arrays, each a function of an `Axes`.

Colours go from light to dark with compute; circles are runs that were fitted, hollow squares those
that were held out, bands 90 % intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
FIT, HELD, BAND = "#1f4e79", "#c0392b", 0.18


@dataclass(frozen=True)
class Slice:
    """Runs of one budget. curve: what was fitted to them, N -> L; None: it was refused."""

    budget: float
    N: Array
    L: Array
    curve: Callable[[Array], Array] | None = None
    best: tuple[float, float] | None = None  # N, L
    held_out: bool = False


@dataclass(frozen=True)
class Band:
    """A law along x with an interval."""

    x: Array
    middle: Array
    low: Array
    high: Array
    label: str


def figure(width: float = 7.0, height: float = 4.6, columns: int = 1) -> tuple[Any, Any]:
    """A figure and its axes, without pyplot, whose backend is a notebook's own."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    axes = made.subplots(1, columns)
    for one in np.atleast_1d(axes):
        one.grid(alpha=0.25, linewidth=0.6)
        one.spines[["top", "right"]].set_visible(False)
    return made, axes


def save(made: Any, path: Path) -> Path:
    made.savefig(path, dpi=140)
    return path


def shades(count: int) -> list[Any]:
    from matplotlib import colormaps

    return [colormaps["viridis_r"](x) for x in np.linspace(0.12, 0.95, max(count, 1))]


def power_of_ten(value: float) -> str:
    """`3e18` as $3 \\times 10^{18}$, to two digits."""
    lead, exponent = f"{value:.1e}".split("e")
    front = "" if lead == "1.0" else rf"{float(lead):g} \times "
    return rf"${front}10^{{{int(exponent)}}}$"


def plain(axis: Any) -> None:
    """Numbers as people write them on an axis that is logarithmic over less than a decade or so."""
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def isoflop(axes: Any, slices: Sequence[Slice], parameters: str, metric: str) -> None:
    """Loss against size, one curve per budget, with its minimum."""
    for shade, one in zip(shades(len(slices)), slices, strict=True):
        marker = "s" if one.held_out else "o"
        face = "none" if one.held_out else shade
        order = np.argsort(one.N)
        label = power_of_ten(one.budget) + (" (held out)" if one.held_out else "")
        axes.plot(one.N[order], one.L[order], marker, color=shade, mfc=face, ms=5, label=label)
        if one.curve is not None:
            x = np.geomspace(one.N.min(), one.N.max(), 200)
            axes.plot(x, one.curve(x), "-", color=shade, linewidth=1.2)
        if one.best is not None:
            axes.plot(*one.best, "*", color=HELD, ms=11, zorder=5)
    axes.set_xscale("log")
    axes.set(xlabel=f"parameters ({parameters})", ylabel=metric)
    axes.legend(title="FLOPs", fontsize=8, title_fontsize=8, frameon=False)


def envelope(axes: Any, curves: Sequence[tuple[Array, Array]], points: Any, metric: str) -> None:
    """Training curves against FLOPs and the lowest loss at each, points: (C, L)."""
    for flops, loss in curves:
        axes.plot(flops, loss, color="gray", alpha=0.45, linewidth=0.8)
    axes.plot(*points, color=HELD, linewidth=1.8, label="lowest at each compute")
    axes.set(xscale="log", yscale="log", xlabel="training FLOPs", ylabel=metric)
    plain(axes.yaxis)
    axes.legend(frameon=False)


def optima(
    axes: Any, found: tuple[Array, Array], bands: Sequence[Band], held: tuple[Array, Array], y: str
) -> None:
    """Best sizes (or tokens, or tokens per parameter) against compute, with the laws through
    them; found, held: (C, value)."""
    for shade, band in zip(shades(len(bands)), bands, strict=True):
        axes.plot(band.x, band.middle, color=shade, linewidth=1.4, label=band.label)
        axes.fill_between(band.x, band.low, band.high, color=shade, alpha=BAND, linewidth=0)
    axes.plot(*found, "o", color=FIT, ms=6, label="minima of slices")
    if len(held[0]):
        axes.plot(*held, "s", color=HELD, mfc="none", ms=7, label="held out")
    axes.set(xscale="log", yscale="log", xlabel="training FLOPs", ylabel=y)
    axes.legend(fontsize=8, frameon=False)


def frontier(
    axes: Any, found: tuple[Array, Array], bands: Sequence[Band], held: tuple[Array, Array], y: str
) -> None:
    """Lowest loss against compute, the forecast with its band, and what was trained."""
    optima(axes, found, bands, held, y)
    plain(axes.yaxis)


def contour(
    axes: Any, loss: Callable[[Array, Array], Array], N: Array, D: Array, best: Any, y: str
) -> None:
    """The fitted loss over parameters and tokens, the runs on it, and the efficient frontier
    best: (N, D) along compute."""
    x = np.geomspace(N.min() / 2, N.max() * 2, 160)
    t = np.geomspace(D.min() / 2, D.max() * 2, 160)
    grid_N, grid_D = np.meshgrid(x, t)
    values = loss(grid_N.ravel(), grid_D.ravel()).reshape(grid_N.shape)
    lines = axes.contour(grid_N, grid_D, values, levels=14, cmap="viridis_r", linewidths=0.9)
    axes.clabel(lines, fontsize=7)
    axes.plot(N, D, "o", color=FIT, ms=4, label="runs")
    axes.plot(*best, color=HELD, linewidth=1.6, label="efficient frontier")
    axes.set(xscale="log", yscale="log", xlabel="parameters", ylabel=y)
    axes.set(xlim=(x[0], x[-1]), ylim=(t[0], t[-1]))
    axes.legend(fontsize=8, frameon=False)


def residuals(axes: Any, columns: Mapping[str, Array], relative: Array) -> None:
    """Relative errors of the fit against each column, one panel per column."""
    for one, (name, values) in zip(np.atleast_1d(axes), columns.items(), strict=True):
        one.axhline(0, color="gray", linewidth=0.8)
        one.plot(values, 100 * relative, "o", color=FIT, ms=4)
        if np.ptp(np.log(values)) > 0.5:
            one.set_xscale("log")
        one.set_xlabel(name)
    np.atleast_1d(axes)[0].set_ylabel("observed over fitted loss, less 1, %")


def corner(made: Any, samples: Mapping[str, Array]) -> None:
    """Each parameter's bootstrap histogram on the diagonal, pairs below it."""
    count = len(samples)
    grid = made.subplots(count, count, squeeze=False)
    for i, (below, y) in enumerate(samples.items()):
        for j, (left, x) in enumerate(samples.items()):
            axes = grid[i][j]
            if j > i:
                axes.set_axis_off()
                continue
            if i == j:
                # Of data without noise all resamples agree.
                several = np.ptp(x) > 1e-9 * np.abs(x).max()
                axes.hist(x, bins=40 if several else 1, color=FIT, alpha=0.8)
                axes.set_yticks([])
            else:
                axes.plot(x, y, ".", color=FIT, ms=1, alpha=0.25)
            axes.tick_params(labelsize=6)
            if i == count - 1:
                axes.set_xlabel(left, fontsize=8)
            if j == 0 and i:
                axes.set_ylabel(below, fontsize=8)


def strip(axes: Any, rows: Sequence[tuple[str, float, float, float]], x: str) -> None:
    """Sensitivity: (what was changed, estimate, low, high) as a strip each, the first on top."""
    for i, (_, middle, low, high) in enumerate(rows):
        place = len(rows) - i
        axes.plot([low, high], [place, place], color=FIT, linewidth=2, alpha=0.6)
        axes.plot(middle, place, "o", color=FIT, ms=5)
    axes.set_yticks(range(len(rows), 0, -1), [name for name, *_ in rows], fontsize=8)
    axes.axvline(rows[0][1], color="gray", linewidth=0.8, linestyle="--")
    axes.set_xlabel(x)
