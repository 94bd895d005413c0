"""What `launch.run.transfer` measured, as tables and pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Result = Mapping[str, Any]


def coordinates_text(result: Result) -> str:
    """A line for each module: sizes after the steps from the narrowest model to the widest, and
    their spread, under each rule."""
    widths, rules = result["widths"], result["rules"]
    paths = list(next(iter(rules.values())))
    wide = max(map(len, (*paths, "module")))
    head = ["module".ljust(wide)]
    for rule in rules:
        head += [f"{rule} {widths[0]}".rjust(14), str(widths[-1]).rjust(9), "spread".rjust(8)]
    lines = ["".join(head)]
    for path in paths:
        cells = [path.ljust(wide)]
        for found in rules.values():
            row = found[path]
            ends = (row["after"][0], row["after"][-1])
            cells += [f"{ends[0]:14.3g}", f"{ends[1]:9.3g}", f"{row['spread']:8.2f}"]
        lines.append("".join(cells))
    for rule, found in rules.items():
        worst = max(found, key=lambda path: found[path]["spread"])
        lines.append(
            f"{rule}: sizes after {result['steps']} steps spread by at most "
            f"{found[worst]['spread']:.2f} ({worst}) from width {min(widths)} to {max(widths)}"
        )
    return "\n".join(lines)


def rates_text(result: Result) -> str:
    """The best rate and loss of every width under each rule, and how the best rate moves."""
    rules = result["rules"]
    lines = ["width" + "".join(f"{rule} rate".rjust(18) + "loss".rjust(9) for rule in rules)]
    for i, width in enumerate(result["widths"]):
        cells = [f"{width:<5d}"]
        for found in rules.values():
            mark = "*" if found["edge"][i] else " "
            cells.append(f"{found['best'][i]:17.4g}{mark}{found['loss'][i]:9.4f}")
        lines.append("".join(cells))
    if any(any(found["edge"]) for found in rules.values()):
        lines.append("*: at the edge of the rates tried; the best may lie outside")
    for rule, found in rules.items():
        lines.append(f"{rule}: the best rate moves by {found['slope']:+.2f} doublings per doubling")
    return "\n".join(lines)


def plot_coordinates(result: Result, path: Path) -> None:
    """Sizes against widths, a line for each module and a picture for each rule."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure  # without pyplot, whose backend is a notebook's own

    rules, widths = result["rules"], result["widths"]
    figure = Figure(figsize=(4.2 * len(rules), 4), layout="constrained")
    panels = figure.subplots(1, len(rules), sharey=True, squeeze=False)[0]
    for axes, (rule, found) in zip(panels, rules.items(), strict=True):
        worst = sorted(found, key=lambda path: -found[path]["spread"])[:4]
        for i, (name, row) in enumerate(found.items()):
            style: dict[str, Any] = {"color": "0.75", "linewidth": 0.8, "zorder": 1}
            if name in worst:
                style = {"color": colormaps["tab20"](i % 20), "linewidth": 1.6, "zorder": 2}
                style |= {"marker": "o", "markersize": 3}
                style["label"] = f"{name} ({row['spread']:.2f})"
            axes.plot(widths, row["after"], **style)
        axes.set(xlabel="width", title=rule, xscale="log", yscale="log")
        _ticks(axes, widths)
        axes.legend(fontsize=7, title="widest spread", title_fontsize=7)
    panels[0].set_ylabel(f"root mean square after {result['steps']} steps")
    figure.savefig(path, dpi=130)


def plot_rates(result: Result, path: Path) -> None:
    """Losses against rates, a line for each width and a picture for each rule."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    rules, widths = result["rules"], result["widths"]
    figure = Figure(figsize=(4.2 * len(rules), 4), layout="constrained")
    panels = figure.subplots(1, len(rules), sharey=True, squeeze=False)[0]
    for axes, (rule, found) in zip(panels, rules.items(), strict=True):
        for i, width in enumerate(widths):
            colour = colormaps["viridis"](0.9 * (1 - i / max(len(widths) - 1, 1)))
            axes.plot(result["rates"], found["losses"][i], "o-", color=colour, markersize=3)
            best = (found["best"][i], found["loss"][i])
            axes.plot(*best, "v", color=colour, markersize=8, label=str(width))
        title = f"{rule}: {found['slope']:+.2f} doublings per doubling"
        axes.set(xlabel="learning rate", title=title, xscale="log")
        axes.set_xscale("log", base=2)
        axes.legend(fontsize=7, title="width (best)", title_fontsize=7)
        axes.grid(alpha=0.3)
    low = [x for found in rules.values() for x in found["loss"]]
    all_ = [x for found in rules.values() for row in found["losses"] for x in row]
    top = min(max(x for x in all_ if math.isfinite(x)), max(low) * 1.5)
    panels[0].set(ylabel="loss", ylim=(min(low) * 0.98, top * 1.02))
    figure.savefig(path, dpi=130)


def _ticks(axes: Any, widths: list[int]) -> None:
    axes.set_xticks(widths, [str(width) for width in widths])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
