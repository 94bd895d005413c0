"""What a scaling study varies: the keys of `get_study()` in an experiment file.

The experiment's `get_config` is the run that every cell starts from; `get_study` returns the keys
below that differ from their defaults. On the command line each is `--study.key=value`.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict

from launch.run import keys, resolve
from launch.run.keys import Key
from nn import names

# Convention of counting parameters -> the column of a table.
COLUMNS = {"total": "N_total", "non_embedding": "N_nonemb", "matmul": "N_matmul"}
RULES = ("fixed", "mup", "completep", "step_law", "deepseek", "porian")
SCHEDULES = ("matched", "constant")
WHERE = ("nowhere", "middle", "everywhere")


@dataclasses.dataclass(frozen=True)
class Study:
    """One study; every quantity is of a whole run, FLOPs are exact (nothing is 6ND)."""

    # The models: one per width, or the overrides of each.
    widths: tuple[int, ...] = ()  # values of width_key, ascending
    width_key: str = "model.dim"
    multiples: tuple[str, ...] = ()  # keys that grow with the width, "model.mlp_dim=4": 4 widths
    aspect: float = 0.0  # width / layers; 0: as many layers as the experiment has
    depth_key: str = "model.num_layers"
    head_dim: int = 0  # heads = width / head_dim; 0: as many heads as the experiment has
    heads_key: str = "model.num_heads"
    models: tuple[str, ...] = ()  # in place of widths: "model.dim=64 model.num_layers=2", ...

    # The runs of each model: of given compute (IsoFLOP slices), of given tokens per parameter.
    budgets: tuple[float, ...] = ()  # FLOPs of a run
    held_out: tuple[float, ...] = ()  # budgets that no fit sees: the forecast is held against them
    points: int = 7  # models per budget
    held_out_points: int = 4  # models per held-out budget, over the root of the span
    span: float = 4.0  # parameters go from 1 / span to span times those at the centre of a slice
    center: float = 20.0  # tokens per parameter at the centre of the first slice
    recenter: bool = True  # later slices lie around the minimum that the earlier ones forecast
    ratios: tuple[float, ...] = ()  # tokens per parameter, of every model
    convention: str = "matmul"  # which parameters are meant: total, non_embedding, matmul

    # Hyper-parameters by size, and how far they are tested.
    rule: str = "fixed"  # fixed, mup, completep, step_law, deepseek, porian
    base_width: int = 0  # of mup and completep: where the experiment's rate was tuned; 0: smallest
    rates: tuple[float, ...] = ()  # further learning rates, as multiples of the rule's
    rates_at: str = "middle"  # of each slice: nowhere, middle, everywhere
    seeds: tuple[int, ...] = (0,)
    noise_seeds: int = 3  # runs of the middle cell of the middle slice, for the noise of a seed
    schedule: str = "matched"  # the experiment's, over each run; or constant
    warmup_fraction: float = 0.02  # of the steps of each run

    # Limits.
    min_steps: int = 300  # shorter runs are left out: their warm-up and noise are not the law's
    max_epochs: float = 4.0  # of the training data; runs that would see more are left out
    flops_error: float = 0.01  # that whole steps may put a run off its budget
    max_flops: float = 0.0  # of the whole study; 0: none

    # What is fitted.
    metric: str = "loss"  # of the validation split at the end of a run

    def __post_init__(self) -> None:
        if bool(self.widths) == bool(self.models):
            raise ValueError("study: give one of widths and models")
        if list(self.widths) != sorted(set(self.widths)):
            raise ValueError(f"study.widths={self.widths}: each once, in ascending order")
        if not (self.budgets or self.ratios):
            raise ValueError("study: give budgets (FLOPs), ratios (tokens per parameter) or both")
        if both := set(self.budgets) & set(self.held_out):
            raise ValueError(f"study.held_out={sorted(both)} are budgets of the fit too; drop them")
        for name, options in (
            ("convention", COLUMNS),
            ("rule", RULES),
            ("schedule", SCHEDULES),
            ("rates_at", WHERE),
        ):
            names.lookup(f"study.{name}", getattr(self, name), dict.fromkeys(options))
        least = {
            "points": 1,
            "held_out_points": 1,
            "noise_seeds": 1,
            "min_steps": 1,
            "aspect": 0,
            "head_dim": 0,
        }
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"study.{name}={getattr(self, name)}: at least {bound}")
        if not self.span > 1:
            raise ValueError(f"study.span={self.span}: above 1, such as 4")
        if not 0 <= self.warmup_fraction <= 0.1:
            raise ValueError(
                f"study.warmup_fraction={self.warmup_fraction}: 0 to 0.1; a longer warm-up bends "
                "the law of small runs (Porian et al. 2024); nearest: 0.1"
            )


def known_keys() -> Mapping[str, Key]:
    """The keys of a study, by name."""
    hints = typing.get_type_hints(Study)
    found = {}
    for field in dataclasses.fields(Study):
        hint = hints[field.name]
        item = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else int
        kind = tuple if typing.get_origin(hint) is tuple else hint
        found[field.name] = Key(f"study.{field.name}", kind, field.default, item=item)
    return MappingProxyType(found)


def load(spec: str, overrides: Iterable[str] = ()) -> Study:
    """The study of an experiment file, with overrides "key=value".

    Raises ValueError for a file without `get_study`, an unknown key, a wrong type or value.
    """
    path, _ = resolve.find_experiment(spec)
    module = resolve.load_experiment(path)
    if not hasattr(module, "get_study"):
        raise ValueError(
            f"--config={spec}: {path.name} has no function get_study(), which says what a scaling "
            "study varies; an example: experiments/scaling_bytes.py"
        )
    made = module.get_study()
    if not isinstance(made, ConfigDict):
        raise ValueError(f"{path}: get_study() returned {type(made).__name__}, not a ConfigDict")
    known, values = known_keys(), {}
    for name, value in made.items():
        values[name] = keys.coerce(names.lookup("key of a study", name, known), value)
    for entry in overrides:
        name, _, text = entry.partition("=")
        values[name] = keys.parse(names.lookup("key of a study", name, known), text)
    return Study(**values)


def split_arguments(argv: Iterable[str]) -> tuple[list[str], list[str]]:
    """Take `--study.key=value` out of a command line: overrides, the rest."""
    overrides: list[str] = []
    rest: list[str] = []
    for word in argv:
        inside = word.startswith("--study.")
        if inside and "=" not in word:
            raise ValueError(f"{word} needs a value: write {word}=VALUE")
        (overrides if inside else rest).append(word.removeprefix("--study.") if inside else word)
    return overrides, rest


def as_dict(study: Study) -> dict[str, Any]:
    """For JSON."""
    return dataclasses.asdict(study)
