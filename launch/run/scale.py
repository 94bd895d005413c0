"""The section `scale` of a config: what a larger model takes over from a smaller one, its base.

The rules are those of `nn.learning.parametrisation`. Of the model they set fields (`FACTORS`), so
that a resolved config says what is computed; of its weights, first values and learning rates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from launch.run import keys, optimizer, resolve
from nn import names
from nn.learning import parametrisation
from nn.learning.parametrisation import FACTORS, Row
from nn.learning.tune import Tune

STANDARD = "standard"


def factor_keys() -> dict[str, str]:
    """The keys of a config that a rule sets, and the fields of a model that they are."""
    return {f"model.{name}": name for name in FACTORS}


def check(config: ConfigDict) -> None:
    """ValueError for a rule without a base, or with what it says nothing of."""
    scale, options = config.scale, config.optimizer
    if scale.rule == STANDARD:
        return
    if not scale.base:
        raise ValueError(
            f"scale.rule={scale.rule!r} needs scale.base, the fields in which the model that was "
            "tuned differs from this one, such as dim=64; nearest: scale.rule='standard'"
        )
    if config.model.pretrained:
        raise ValueError(
            f"scale.rule={scale.rule!r} is for models that are trained from the start, not from "
            f"model.pretrained={config.model.pretrained}; nearest: scale.rule='standard'"
        )
    method = optimizer.METHODS[options.name]
    if method.scales is None:
        raise ValueError(
            f"scale.rule={scale.rule!r} does not say how the rate of optimizer.name="
            f"{options.name!r} follows the width; nearest: optimizer.name='adamw'"
        )
    if method.coupled and not method.linear and options.weight_decay:
        raise ValueError(
            f"scale.rule={scale.rule!r}: optimizer.name={options.name!r} divides decay by the size "
            f"of the gradient, which follows the width; nearest: optimizer.name='adamw', or "
            "optimizer.weight_decay=0"
        )


def base_of(config: ConfigDict, model: Any) -> Any:
    """The base's Config: that of the model but for the fields in `scale.base`.

    Raises ValueError for what is no field, or no value of it.
    """
    known = keys.part_keys("model", config.model.family)
    fields: dict[str, Any] = dict.fromkeys((f for f in FACTORS if f"model.{f}" in known), 1.0)
    for name, text in settings(config.scale.base).items():
        key = names.lookup("field of the model in scale.base", f"model.{name}", known)
        try:
            fields[name] = keys.parse(key, text)
        except ValueError as error:
            raise ValueError(f"scale.base: {error}") from None
    try:
        return dataclasses.replace(model, **fields)
    except ValueError as error:
        raise ValueError(f"scale.base={config.scale.base!r}: {error}") from None


def settings(text: str) -> dict[str, str]:
    """Field -> text of its value, of "dim=64,features=8,8": without "=" a value goes on."""
    found: dict[str, str] = {}
    for piece in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (part.strip() for part in piece.partition("="))
        if equals:
            found[name] = value
        elif found:
            found[list(found)[-1]] += f",{piece}"
        else:
            raise ValueError(f"scale.base: {piece!r} is not of the form field=value")
    return found


def factors(config: ConfigDict, model: Any) -> dict[str, float]:
    """The values of the keys that the rule sets; {} of the standard one.

    model: its Config, in which the rule has set nothing yet.
    """
    if config.scale.rule == STANDARD or not hasattr(model, "factors"):
        return {}
    found: Mapping[str, float] = model.factors(base_of(config, model))
    return {f"model.{name}": value for name, value in found.items()}


def rows(config: ConfigDict, model: Any, params: Any, tune: Tune) -> dict[str, Row]:
    """What the rule says of each weight; {} of the standard one.

    model: its Config. params: abstract, each leaf `Named`. Raises as `parametrisation.compare`.
    """
    if config.scale.rule == STANDARD:
        return {}
    base, family = base_of(config, model), resolve.module("model", config.model.family)

    def initial() -> Any:
        found = family.Model(base).init(jax.random.key(0), *family.example(base, 2))["params"]
        return tune.with_factors(found, 0)

    return parametrisation.compare(config.scale.rule, params, jax.eval_shape(initial))
