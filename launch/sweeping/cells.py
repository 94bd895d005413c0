"""The cells of a sweep: what the runs set, their resolved configs, and what makes two the same run.

Cells come from `sweep()` of an experiment file (see experiments/sweeps.py), from `--sweep.KEY=a,b`
on the command line, or from any program that makes dicts of dotted keys. Each is resolved, checked
and frozen before the first one runs.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from experiments import sweeps
from launch.run import config as configs
from launch.run import keys, resolve

FLAG = "--sweep."
# How a run is carried out, which changes neither what it learns nor what is measured of it. The
# mesh belongs here, as losses do not depend on it, but not the format of the sums over it.
EXECUTION = re.compile(
    r"mesh\.(?!reduce_dtype$).*|metrics\..*|sample\..*|data\.(dir|prefetch)"
    r"|train\.(log_every|checkpoint_every|keep_checkpoints|hang_timeout|time_limit)"
)
DIGITS = 12  # of an id: among 10,000 runs two collide once in five million sweeps


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    id: see `identity`. overrides: the resolved values of the keys that it sets itself.
    """

    id: str
    overrides: Mapping[str, Any]
    config: FrozenConfigDict


def identity(config: ConfigDict) -> str:
    """The first 12 digits of the SHA-256 of a resolved config without its `EXECUTION` keys."""
    flat = keys.flatten(config.to_dict())
    kept = {name: value for name, value in flat.items() if not EXECUTION.fullmatch(name)}
    return configs.digest(ConfigDict(keys.nest(kept)))[:DIGITS]


def resolve_cells(
    spec: str | None, base: Sequence[str], values: Iterable[Mapping[str, Any]]
) -> list[Cell]:
    """Every cell with its config, in order; cells that are equal in every key become one.

    Args:
      spec, base: the experiment and the overrides that all cells start from, as for `configs.load`.
      values: of each cell, by dotted key.
    Raises:
      ValueError: no cells; what `configs.load` raises, with the number of the cell; two cells
        that differ in how they are carried out only.
    """
    found: dict[str, Cell] = {}
    for number, overrides in enumerate(values, 1):
        try:
            config = configs.load(spec, [*base, *configs.overrides_of(overrides)])
        except ValueError as error:
            raise ValueError(f"cell {number} of the sweep: {error}") from error
        flat = keys.flatten(config.to_dict())
        cell = Cell(identity(config), {name: flat[name] for name in overrides}, config)
        same = found.setdefault(cell.id, cell)
        if changes := configs.diff(config, same.config):
            raise ValueError(
                f"cell {number} of the sweep differs from one before it in {', '.join(changes)} "
                "only, which does not change a run; leave one of them out"
            )
    if not found:
        raise ValueError(
            "the sweep has no cells: write a sweep() into the experiment file, "
            "or give --sweep.KEY=VALUE,VALUE"
        )
    return list(found.values())


def of_experiment(spec: str) -> list[dict[str, Any]]:
    """What the `sweep()` of an experiment file yields; empty where it has none."""
    path, _ = resolve.find_experiment(spec)
    module = resolve.load_experiment(path)
    if not hasattr(module, "sweep"):
        return []
    try:
        cells = list(module.sweep())
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: sweep(): {' '.join(str(error).split())}") from error
    for cell in cells:
        if not isinstance(cell, Mapping):
            raise ValueError(
                f"{path}: sweep() yields {cell!r}: a cell maps keys to values, "
                'as in {"optimizer.learning_rate": 1e-3}'
            )
    return [dict(cell) for cell in cells]


def of_flags(words: Iterable[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """The grid that `--sweep.KEY=VALUE,VALUE` flags span, and the other words.

    Values are parted by commas, or by semicolons where there is one ("32,32;64,64").
    Raises ValueError for a flag without values, or one that is given twice.
    """
    axes: dict[str, list[str]] = {}
    rest = []
    for word in words:
        if not word.startswith(FLAG):
            rest.append(word)
            continue
        name, _, text = word.removeprefix(FLAG).partition("=")
        values = [part.strip() for part in text.split(";" if ";" in text else ",")]
        if not all(values):
            raise ValueError(f"{word}: must have the form {FLAG}section.key=VALUE,VALUE")
        if name in axes:
            raise ValueError(f"{FLAG}{name} is given twice; give all its values in one")
        axes[name] = values
    return (sweeps.grid(axes) if axes else []), rest


def differing(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys in which mappings differ, in the order in which they first occur."""
    names = list(dict.fromkeys(name for cell in cells for name in cell))
    missing = object()
    return [
        name
        for name in names
        if any((cell[name] if name in cell else missing) != cells[0].get(name) for cell in cells)
    ]


def label(values: Mapping[str, Any], names: Iterable[str] | None = None) -> str:
    """`features=64,64 learning_rate=0.003`: the last parts of keys, and their values."""
    wanted = values.keys() if names is None else names
    parts = ((name.rpartition(".")[2], values[name]) for name in wanted if name in values)
    return " ".join(f"{name}={keys.render(value)}" for name, value in parts)
