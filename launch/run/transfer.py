"""Models of several widths under several rules of `scale`: sizes of activations, best rates.

The widths are those of the base times whole numbers. All models see the same batches, on one
device; a model is compiled once for all its rates.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import FrozenConfigDict

from launch.run import config as configs
from launch.run import scale
from launch.run.build import Run, build, loader, open_data
from launch.run.state import initial_state
from nn import names
from nn.analysis import transfer
from nn.learning.parametrisation import RULES

CHUNK = 100  # steps whose batches are held at once
INPUTS = (
    "inputs",
    "decoder_inputs",
    "tokens",
)  # entries of a batch that models are given, in order


@dataclasses.dataclass(frozen=True)
class Grid:
    """What is compared.

    base: as `scale.base`; each of its sizes is multiplied by each of `times`.
    """

    config: FrozenConfigDict
    base: str
    times: tuple[int, ...]
    rules: tuple[str, ...]
    steps: int

    def __post_init__(self) -> None:
        for rule in self.rules:
            names.lookup("rule to compare", rule, RULES)
        if len(set(self.times)) < 2 or min(self.times) < 1:
            raise ValueError(f"times {self.times}: at least two different ones, from 1 on")
        if self.steps < 1:
            raise ValueError(f"{self.steps} steps: at least 1")
        if not self.base:
            raise ValueError("nothing to multiply: name the fields of a base, such as dim=64")

    def steady(self) -> Grid:
        """The same with a rate that is constant from the first step."""
        constant = ["optimizer.schedule=constant", "optimizer.warmup_steps=0"]
        return dataclasses.replace(self, config=configs.override(self.config, constant))

    @property
    def sizes(self) -> dict[str, Any]:
        """The fields of the base and their values. Raises ValueError for one that is no size."""
        model = configs.section(self.config, "model")
        known = configs.override(self.config, [f"scale.base={self.base}"])
        base = scale.base_of(known, model)
        found = {name: getattr(base, name) for name in scale.settings(self.base)}
        for name, value in found.items():
            whole = value if isinstance(value, tuple) else (value,)
            if not whole or not all(type(x) is int and x > 0 for x in whole):
                raise ValueError(f"base field {name}={value}: must be a size, or sizes")
        return found

    @property
    def widths(self) -> tuple[int, ...]:
        """The first size of the base in each of the models."""
        first = next(iter(self.sizes.values()))
        return tuple(
            times * (first[0] if isinstance(first, tuple) else first) for times in self.times
        )

    def model(self, rule: str, times: int) -> FrozenConfigDict:
        """The config of one of the models; raises as `configs.override`."""
        fields = {
            f"model.{name}": tuple(times * x for x in value)
            if isinstance(value, tuple)
            else times * value
            for name, value in self.sizes.items()
        }
        fields |= {"scale.rule": rule, "scale.base": self.base, "train.steps": self.steps}
        return configs.override(self.config, configs.overrides_of(fields))

    def runs(self) -> Iterator[tuple[str, int, Run]]:
        """(rule, width, run on one device)."""
        for rule in self.rules:
            for times, width in zip(self.times, self.widths, strict=True):
                yield rule, width, build(self.model(rule, times), jax.devices()[:1])


Batches = list[dict[str, jax.Array]]


def batches(config: FrozenConfigDict, steps: int) -> Batches:
    """The training batches of the first steps, up to CHUNK of them stacked."""
    rows = loader(config, open_data(config, "train"), train=True).iterate(0)
    found = []
    for first in range(0, steps, CHUNK):
        own = [next(rows) for _ in range(min(CHUNK, steps - first))]
        found.append({name: jnp.asarray(np.stack([b[name] for b in own])) for name in own[0]})
    return found


def trainer(run: Run) -> Callable[[Any, dict[str, jax.Array], Any], tuple[Any, jax.Array]]:
    """(state, stacked batches, factor of the rate) -> (state, loss of each step), compiled."""

    @functools.partial(jax.jit, donate_argnums=0)
    def train(state: Any, stacked: dict[str, jax.Array], factor: Any) -> tuple[Any, jax.Array]:
        task = run.rule.task
        optimizer = optax.chain(task.optimizer, optax.scale(factor))
        rule = dataclasses.replace(run.rule, task=dataclasses.replace(task, optimizer=optimizer))

        def step(state: Any, batch: dict[str, jax.Array]) -> tuple[Any, jax.Array]:
            state, metrics = rule.update(state, batch)
            return state, metrics["loss"]

        return jax.lax.scan(step, state, stacked)

    return train


def first_state(run: Run) -> Any:
    """Of `trainer`."""
    state = initial_state(run.rule, run.config.seed)
    return state.replace(opt_state=(state.opt_state, optax.EmptyState()))


def coordinates(grid: Grid) -> dict[str, Any]:
    """The coordinate check: root mean squares of what modules give, before and after the steps.

    Of a grid that is `steady`. Returns {"widths": [...], "steps": n, "rules":
    {rule: {path: {"before": [...], "after": [...], "spread": x}}}}; the spread is of `after`.
    """
    data = batches(grid.config, grid.steps)
    inputs = [data[0][name][0] for name in INPUTS if name in data[0]]
    rules: dict[str, Any] = {rule: {} for rule in grid.rules}
    for rule, _, run in grid.runs():
        measure = jax.jit(functools.partial(transfer.coordinates, run.rule.task.model))
        state, train = first_state(run), trainer(run)
        pair = []
        for when in ("before", "after"):
            if when == "after":
                for stacked in data:
                    state, _ = train(state, stacked, 1.0)
            pair.append(
                jax.device_get(measure({"params": state.params, **state.variables}, *inputs))
            )
        for path in pair[0]:
            row = rules[rule].setdefault(path, {"before": [], "after": []})
            for when, found in zip(("before", "after"), pair, strict=True):
                row[when].append(float(found[path]))
    for paths in rules.values():
        for row in paths.values():
            row["spread"] = transfer.spread(row["after"])
    return {"widths": list(grid.widths), "steps": grid.steps, "rules": rules}


def rates(grid: Grid, tried: Sequence[float], say: Callable[[str], None]) -> dict[str, Any]:
    """The best learning rate of every width: the loss is the mean of the last tenth of the steps.

    Returns {"widths", "steps", "rates", "rules": {rule: {"losses": [[...]], "best", "loss", "edge":
    [...], "slope": x}}}: for each width the losses at the rates and `transfer.optimum`; the slope
    is in doublings of the best rate for a doubling of the width. say: is told of each width.
    """
    data, last = batches(grid.config, grid.steps), max(grid.steps // 10, 1)
    kept = ("losses", "best", "loss", "edge")
    rules: dict[str, Any] = {rule: {name: [] for name in kept} for rule in grid.rules}
    for rule, width, run in grid.runs():
        train, losses = trainer(run), []
        for rate in tried:
            state, found = first_state(run), []
            for stacked in data:
                state, loss = train(state, stacked, rate / run.config.optimizer.learning_rate)
                found.append(np.asarray(loss))
            losses.append(float(np.concatenate(found)[-last:].mean()))
        best = transfer.optimum(tried, losses)
        say(f"{rule} {width}: best rate {best.rate:.4g}, loss {best.loss:.4f}")
        values = (losses, best.rate, best.loss, best.edge)
        for name, value in zip(kept, values, strict=True):
            rules[rule][name].append(value)
    for found in rules.values():
        found["slope"] = transfer.slope(grid.widths, found["best"])
    return {"widths": list(grid.widths), "steps": grid.steps, "rates": list(tried), "rules": rules}
