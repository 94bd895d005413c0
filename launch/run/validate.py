"""What the values of a config may be: one table of rules, then what keys ask of each other.

The fields of a `Config` of a model, objective, data set or rule are checked by that `Config`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

from ml_collections import ConfigDict

from launch.run import keys, optimizer, precision, scale
from nn import names
from nn.learning import parametrisation, tune
from nn.parallel import schedule
from nn.parallel.mesh import AXES, USES, parse_rules


@dataclasses.dataclass(frozen=True)
class Rule:
    """A test of one value, in words, and the nearest value that passes."""

    words: str
    test: Callable[[Any], bool]
    nearest: Callable[[Any], Any] | None = None  # of a wrong value; None: the default is named

    def check(self, key: str, value: Any) -> None:
        """ValueError naming key, value, rule and the nearest valid value."""
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{key}={value}: must be finite and {self.words}{_default(key)}")
        if not self.test(value):
            hint = f"; nearest: {self.nearest(value)}" if self.nearest else _default(key)
            raise ValueError(f"{key}={value}: must be {self.words}{hint}")


def _default(key: str) -> str:
    return f"; its default: {keys.render(keys.base_keys()[key].default)}"


def choice(options: Iterable[str]) -> Callable[[str, Any], None]:
    """The rule for a name that must be among `options`."""
    return lambda key, value: names.lookup(key, value, dict.fromkeys(options))


SEED = Rule("0 to 4294967295", lambda x: 0 <= x < 2**32, lambda x: 0 if x < 0 else 2**32 - 1)
COUNT = Rule("at least 1", lambda x: x >= 1, lambda x: 1)
COUNT_OR_OFF = Rule("at least 0", lambda x: x >= 0, lambda x: 0)
POSITIVE = Rule("above 0", lambda x: x > 0)
FRACTION = Rule("between 0 and 1", lambda x: 0 <= x <= 1, lambda x: min(max(x, 0.0), 1.0))
SHARE = Rule("above 0 and at most 1", lambda x: 0 < x <= 1, lambda x: 1.0 if x > 1 else 0.01)
MOMENT = Rule("at least 0 and below 1", lambda x: 0 <= x < 1, lambda x: 0.0 if x < 0 else 0.999)
AXIS = Rule(
    "a positive size, or -1 for what the other axes leave",
    lambda x: x == -1 or x >= 1,
    lambda x: 1 if x == 0 else -1,
)

RULES: dict[str, Rule] = {
    "seed": SEED,
    "data.batch_size": COUNT,
    "data.sequence_length": COUNT,
    "data.seed": SEED,
    "data.prefetch": COUNT_OR_OFF,
    "data.eval_batches": COUNT_OR_OFF,
    "data.eval_batch_size": COUNT_OR_OFF,
    "optimizer.learning_rate": POSITIVE,
    "optimizer.warmup_steps": COUNT_OR_OFF,
    "optimizer.decay_steps": COUNT,
    "optimizer.final_fraction": FRACTION,
    "optimizer.cooldown_fraction": FRACTION,
    "optimizer.weight_decay": COUNT_OR_OFF,
    "optimizer.clip_norm": COUNT_OR_OFF,
    "optimizer.b1": MOMENT,
    "optimizer.b2": MOMENT,
    "optimizer.eps": POSITIVE,
    "optimizer.momentum": MOMENT,
    "tune.lora_rank": COUNT_OR_OFF,
    "tune.lora_alpha": POSITIVE,
    **{f"mesh.{axis}": AXIS for axis in AXES},
    "mesh.microbatches": COUNT,
    "mesh.rounds": COUNT,
    "train.steps": COUNT,
    "train.log_every": COUNT,
    "train.eval_every": COUNT_OR_OFF,
    "train.checkpoint_every": COUNT_OR_OFF,
    "train.keep_checkpoints": COUNT,
    "train.early_stop_patience": COUNT_OR_OFF,
    "train.hang_timeout": COUNT_OR_OFF,
    "train.time_limit": COUNT_OR_OFF,
    "sample.length": COUNT_OR_OFF,
    "sample.temperature": COUNT_OR_OFF,
    "sample.top_k": COUNT_OR_OFF,
    "sample.top_p": SHARE,
}

CHOICES: dict[str, Callable[[str, Any], Any]] = {
    "optimizer.name": choice(optimizer.NAMES),
    "optimizer.schedule": choice(optimizer.SCHEDULES),
    "optimizer.decay_mask": choice(optimizer.DECAY_MASKS),
    "scale.rule": choice(parametrisation.RULES),
    "precision.policy": lambda key, value: precision.check(value),
    **{f"mesh.{key}": choice(values) for key, values in USES.items()},
    "mesh.attention": choice(("auto", *USES["attention"])),
}


def validate(config: ConfigDict) -> None:
    """ValueError naming key, value, rule and the nearest valid choice for the first bad value."""
    values = keys.flatten(config)
    for key, value in values.items():
        if key in RULES and value is not None:
            RULES[key].check(key, value)
        elif key in CHOICES:
            CHOICES[key](key, value)
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{key}={value}: must be finite")
    for check in (_schedule, scale.check, tune_of, _mesh, _batch, _context, _early_stop):
        check(config)


def _schedule(config: ConfigDict) -> None:
    options, steps = config.optimizer, config.train.steps
    if options.warmup_steps > steps:
        raise ValueError(
            f"optimizer.warmup_steps={options.warmup_steps}: must be at most "
            f"train.steps={steps}; nearest: {steps}"
        )
    if options.decay_steps is not None and options.decay_steps < options.warmup_steps:
        raise ValueError(
            f"optimizer.decay_steps={options.decay_steps}: must be at least "
            f"optimizer.warmup_steps={options.warmup_steps}; nearest: {options.warmup_steps}"
        )


def tune_of(config: ConfigDict) -> tune.Tune:
    """What section `tune` says of the parameters; where they start is for `restore`."""
    return tune.Tune(**{name: value for name, value in config.tune.items() if name != "base"})


def _mesh(config: ConfigDict) -> None:
    mesh = config.mesh
    parse_rules(mesh.rules, mesh.sequence_parallel)
    schedule.check(mesh.schedule, 1, mesh.microbatches, mesh.rounds)
    free = [axis for axis in AXES if config.mesh[axis] == -1]
    if len(free) > 1:
        raise ValueError(
            f"mesh.{free[0]} and mesh.{free[1]} are both -1: only one axis can take what the "
            f"others leave; nearest: mesh.{free[0]}=1"
        )


def _batch(config: ConfigDict) -> None:
    size = config.data.batch_size
    parts = {"mesh.microbatches": config.mesh.microbatches}
    if "accumulate" in config.rule:
        parts["rule.accumulate"] = config.rule.accumulate
    for key, count in parts.items():
        if count > 0 and size % count:
            raise ValueError(
                f"data.batch_size={size} is not divisible by {key}={count}; "
                f"nearest: data.batch_size={max(round(size / count), 1) * count}"
            )
    # What divides the one then divides the other: the mesh, the microbatches of a pipeline.
    if config.data.eval_batch_size % size:
        nearest = max(round(config.data.eval_batch_size / size), 1) * size
        raise ValueError(
            f"data.eval_batch_size={config.data.eval_batch_size} is no multiple of "
            f"data.batch_size={size}; nearest: {nearest}"
        )


def _context(config: ConfigDict) -> None:
    length = config.data.sequence_length
    if "context_length" in config.model and length > config.model.context_length > 0:
        raise ValueError(
            f"data.sequence_length={length}: must be at most "
            f"model.context_length={config.model.context_length}; "
            f"nearest: {config.model.context_length}"
        )


def _early_stop(config: ConfigDict) -> None:
    train = config.train
    if train.early_stop_metric and not train.early_stop_patience:
        raise ValueError(
            f"train.early_stop_metric={train.early_stop_metric!r} needs "
            "train.early_stop_patience of at least 1; nearest: 1"
        )
    if train.early_stop_patience and not train.early_stop_metric:
        raise ValueError(
            f"train.early_stop_patience={train.early_stop_patience} needs "
            "train.early_stop_metric; nearest: 'loss'"
        )
