"""From `--config=FILE[:ARG] --config.a.b=value` to one frozen config that holds every key.

A key takes its value from the last of these that sets it: its default (experiments/base.py, or the
`Config` of the file that the section names), the preset of the model, the directory of
`model.pretrained`, the experiment file, the command line. What contradicts that directory is
refused. Where the command line picks another file or preset for a section, what the
experiment set for the old one is dropped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from launch.run import keys, published, resolve, scale
from launch.run.keys import Key
from launch.run.validate import validate
from nn import names

PRESET, PRETRAINED = "model.preset", "model.pretrained"


def load(spec: str | None, overrides: Iterable[str] = ()) -> FrozenConfigDict:
    """The resolved and validated config of an experiment.

    Args:
      spec: "experiments/x.py" or "experiments/x.py:arg"; None: experiments/base.py.
      overrides: "section.key=value", later ones win.
    Raises:
      FileNotFoundError: no such experiment, or nothing published in `model.pretrained`.
      ValueError: an unknown key, argument, name or preset, a wrong type, a value out of range.
    """
    set_ = {} if spec is None else keys.flatten(read_experiment(spec))
    return _resolve(set_, _texts(overrides), spec or "experiments/base.py", opened=True)


def _texts(overrides: Iterable[str]) -> dict[str, str]:
    """Dotted key -> text of its value."""
    texts = {}
    for entry in overrides:
        name, equals, text = entry.partition("=")
        if not equals:
            raise ValueError(f"--config.{entry}: must have the form --config.section.key=value")
        texts[name] = text
    return texts


def override(config: FrozenConfigDict, overrides: Iterable[str]) -> FrozenConfigDict:
    """A resolved config with further overrides; raises what `load` raises."""
    texts = _texts(overrides)
    return _resolve(keys.flatten(config.to_dict()), texts, "config", opened=PRETRAINED in texts)


def defaults() -> FrozenConfigDict:
    """The config of an experiment that sets nothing."""
    return load(None)


def read_experiment(spec: str) -> ConfigDict:
    """What the `get_config` of an experiment returns, unchecked."""
    path, arg = resolve.find_experiment(spec)
    module = resolve.load_experiment(path)
    takes = bool(inspect.signature(module.get_config).parameters)
    if arg is not None and not takes:
        raise ValueError(f"--config={spec}: {path.name} takes no argument; nearest: {path.name!r}")
    if arg is not None:
        arguments = module.ARGUMENTS if hasattr(module, "ARGUMENTS") else {arg: None}
        names.lookup(f"argument of {path.name}", arg, dict.fromkeys(arguments))
    try:
        config = module.get_config() if arg is None else module.get_config(arg)
    except (AttributeError, KeyError, TypeError) as error:  # how a ConfigDict refuses a setting
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(config, ConfigDict):
        raise ValueError(f"{path}: get_config() returned {type(config).__name__}, not a ConfigDict")
    return config


def _resolve(
    set_: Mapping[str, Any], texts: Mapping[str, str], origin: str, opened: bool = False
) -> FrozenConfigDict:
    """Every key with its value, from what an experiment set and the texts of the overrides.

    opened: `model.pretrained` is read; a config that was resolved has its fields and needs it not.
    """
    base = keys.base_keys()
    chosen, dropped = _selectors(set_, texts)
    source = published.read(chosen[PRETRAINED]) if opened and chosen[PRETRAINED] else None
    if source is not None:
        source.check_family(chosen["model.family"])
        if chosen[PRESET] is not None:
            raise ValueError(
                f"{PRESET}={chosen[PRESET]!r} and {PRETRAINED}={chosen[PRETRAINED]} both give the "
                f"model's fields; leave one out; nearest: {PRESET}=none"
            )
        chosen[PRETRAINED] = str(source.directory)
    known = dict(base)
    for part_name, part in resolve.PARTS.items():
        known |= keys.part_keys(part_name, chosen[part.selector])
    values = {name: key.default for name, key in known.items()} | _preset(chosen)
    values |= {} if source is None else _fields(source.config)
    old_rule = set_["scale.rule"] if "scale.rule" in set_ else scale.STANDARD
    derived = scale.factor_keys() if old_rule != scale.STANDARD else {}  # by that rule
    for name, value in set_.items():
        if name not in derived and (name in base or name.partition(".")[0] not in dropped):
            values[name] = _checked(name, known, origin, keys.coerce, value)
    values |= chosen
    for name, text in texts.items():
        values[name] = _checked(name, known, "--config", keys.parse, text)
    config = _with_factors(values)
    for part_name in resolve.PARTS:
        section(config, part_name)  # the checks of each file's own Config
    if source is not None:
        source.check(section(config, "model"))
    return config


def _with_factors(values: dict[str, Any]) -> FrozenConfigDict:
    """The validated config, with what `scale.rule` sets; nobody else may set that."""
    config = FrozenConfigDict(keys.nest(values))
    validate(config)
    found = scale.factors(config, section(config, "model"))
    for name, value in found.items():
        if values[name] not in (1.0, value):
            raise ValueError(
                f"{name}={values[name]} is set by scale.rule={values['scale.rule']!r}, to {value}; "
                "nearest: to leave it out"
            )
    return FrozenConfigDict(keys.nest(values | found)) if found else config


def _checked(name: str, known: Mapping[str, Key], origin: str, read: Any, value: Any) -> Any:
    """`value` as the type of key `name`; an error says where the value comes from."""
    try:
        if name not in known:
            raise keys.unknown_key(name, known)
        return read(known[name], value)
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from None


def _selectors(
    set_: Mapping[str, Any], texts: Mapping[str, str]
) -> tuple[dict[str, Any], set[str]]:
    """The values of the keys that pick files and the preset; the sections that start anew."""
    base = keys.base_keys()
    chosen, dropped = {}, set()
    for name in (*(part.selector for part in resolve.PARTS.values()), PRETRAINED, PRESET):
        old = keys.coerce(base[name], set_[name]) if name in set_ else base[name].default
        if name == PRESET and "model" in dropped:
            old = None  # a preset of the model that was left
        chosen[name] = keys.parse(base[name], texts[name]) if name in texts else old
        if chosen[name] != old:
            dropped.add(name.partition(".")[0])
    return chosen, dropped


def _preset(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The values that the model's preset sets, by dotted key."""
    if chosen[PRESET] is None:
        return {}
    module = resolve.module("model", chosen["model.family"])
    presets = module.PRESETS if hasattr(module, "PRESETS") else {}
    return _fields(names.lookup(PRESET, chosen[PRESET], presets))


def _fields(model: Any) -> dict[str, Any]:
    """The values of a model's Config, by dotted key."""
    return {f"model.{f.name}": getattr(model, f.name) for f in dataclasses.fields(model)}


def section(config: FrozenConfigDict, name: str) -> Any:
    """Section "model", "objective", "data" or "rule" as the `Config` of the file it names."""
    part = names.lookup("section of a config", name, resolve.PARTS)
    cls = resolve.config_class(name, config[name][part.selector.partition(".")[2]])
    return cls(**{field.name: config[name][field.name] for field in dataclasses.fields(cls)})


def to_json(config: ConfigDict) -> str:
    """The config as JSON, one key per line, sorted."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True, allow_nan=False) + "\n"


def from_json(text: str) -> FrozenConfigDict:
    """The config that `to_json` wrote; a key that it lacks takes its default.

    Raises ValueError as `load` does, so a config of a version with other keys is refused.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not a config in JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"not a config in JSON: a {type(data).__name__}, not an object")
    return _resolve(keys.flatten(data), {}, "config in JSON")


def digest(config: ConfigDict) -> str:
    """SHA-256 of the canonical JSON, in hexadecimal; equal for equal values of all keys."""
    text = json.dumps(config.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def diff(config: ConfigDict, base: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """The keys that differ: dotted name -> (value in `base`, value in `config`), None if absent."""
    new, old = keys.flatten(config), keys.flatten(base)
    both = dict.fromkeys(sorted(old.keys() | new.keys()))
    pairs = {n: (old[n] if n in old else None, new[n] if n in new else None) for n in both}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def overrides_of(values: Mapping[str, Any]) -> list[str]:
    """Overrides for `load` from a mapping of dotted keys to values, as `sweep()` yields them."""
    return [f"{name}={keys.render(value)}" for name, value in values.items()]


def split_arguments(argv: Sequence[str]) -> tuple[str | None, list[str], list[str]]:
    """Part a command line into the config's file, its overrides, and all other arguments.

    `--config=FILE`, `--config FILE`, `--config.a.b=value` and `--config.a.b value` are taken out.
    Raises ValueError where the value is missing.
    """
    spec, overrides, rest = None, [], []
    words = iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag != "--config" and not flag.startswith("--config."):
            rest.append(word)
            continue
        if not equals:
            following = next(words, None)
            if following is None or following.startswith("--"):
                raise ValueError(f"{flag} needs a value: write {flag}=VALUE")
            value = following
        if flag == "--config":
            spec = value
        else:
            overrides.append(f"{flag.removeprefix('--config.')}={value}")
    return spec, overrides, rest
