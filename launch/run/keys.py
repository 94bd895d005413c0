"""The keys of a config, with their types: where they come from, how their values are read.

A value comes from Python (an experiment file, JSON) and goes through `coerce`, or as text from the
command line and goes through `parse`.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments import base
from launch.run import resolve
from nn import names

WORDS: Mapping[type, str] = {
    int: "a whole number, such as 64",
    float: "a number, such as 0.1 or 1e-3",
    bool: "true or false",
    str: "text",
}
TRUTH = {"true": True, "1": True, "false": False, "0": False}


@dataclasses.dataclass(frozen=True)
class Key:
    """One setting: its dotted name, its type, and its value when nobody sets it."""

    name: str
    kind: type  # int, float, bool, str or tuple
    default: Any
    optional: bool = False  # None is a legal value, written "none"
    item: type = int  # of a tuple

    @property
    def rule(self) -> str:
        """The type in words."""
        words = WORDS[self.kind] if self.kind is not tuple else f"{self.item.__name__}s, as in 8,8"
        return f"{words}, or none" if self.optional else words


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as one dict of dotted names, in order."""

    def walk(section: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for name, value in section.items():
            if isinstance(value, Mapping | ConfigDict):
                yield from walk(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", value

    return dict(walk(config, prefix))


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`, for at most one level of sections."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        section, dot, key = name.partition(".")
        if dot:
            nested.setdefault(section, {})[key] = value
        else:
            nested[name] = value
    return nested


@functools.cache
def base_keys() -> Mapping[str, Key]:
    """The keys of experiments/base.py."""
    config = base.get_config()
    found = {}
    for name, default in flatten(config).items():
        section, dot, key = name.rpartition(".")
        kind = (config[section] if dot else config).get_type(key)
        found[name] = Key(name, kind, default, optional=default is None)
    return types.MappingProxyType(found)


def part_keys(section: str, name: str) -> dict[str, Key]:
    """The keys that the file picked by `name` adds to `section`.

    Raises TypeError where its `Config` breaks the rules for one: a field without a default, of
    a type that no config can hold, or with the name of a key of experiments/base.py.
    """
    cls = resolve.config_class(section, name)
    hints = typing.get_type_hints(cls)
    found = {}
    for field in dataclasses.fields(cls):
        key = f"{section}.{field.name}"
        if key in base_keys():
            raise TypeError(f"{cls.__module__}.Config.{field.name} is a key of base.py already")
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        else:
            default = field.default
        if default is dataclasses.MISSING:
            raise TypeError(f"{cls.__module__}.Config.{field.name} has no default")
        found[key] = _key(key, hints[field.name], default)
    return found


def _key(name: str, hint: Any, default: Any) -> Key:
    optional = False
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        choices = [choice for choice in typing.get_args(hint) if choice is not type(None)]
        optional, hint = True, choices[0] if len(choices) == 1 else None
    if typing.get_origin(hint) is tuple:
        return Key(name, tuple, default, optional, typing.get_args(hint)[0])
    if hint not in WORDS:
        raise TypeError(f"{name}: a config cannot hold a value of type {hint}")
    return Key(name, hint, default, optional)


def parse(key: Key, text: str) -> Any:
    """The value that `text` stands for; ValueError naming key, text and type when there is none."""
    if key.optional and text.lower() == "none":
        return None
    try:
        if key.kind is tuple:
            parts = [part.strip() for part in text.strip(" ()[]").split(",")]
            return tuple(_scalar(key.item, part) for part in parts if part)
        return _scalar(key.kind, text)
    except ValueError:
        raise wrong_type(key, text) from None


def _scalar(kind: type, text: str) -> Any:
    if kind is bool:
        if text.lower() not in TRUTH:
            raise ValueError
        return TRUTH[text.lower()]
    return kind(text)


def coerce(key: Key, value: Any) -> Any:
    """`value` as the key's type; whole numbers become floats, lists tuples, or else ValueError."""
    if value is None and key.optional:
        return None
    if key.kind is tuple and isinstance(value, list | tuple):
        return tuple(_cast(key, key.item, item) for item in value)
    return _cast(key, key.kind, value)


def _cast(key: Key, kind: type, value: Any) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise wrong_type(key, value)
    return value


def wrong_type(key: Key, value: Any) -> ValueError:
    return ValueError(
        f"{key.name}={value!r} is of the wrong type: it must be {key.rule} "
        f"(default: {render(key.default)})"
    )


def render(value: Any) -> str:
    """The text that `parse` turns into `value`."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple | list):
        return ",".join(render(item) for item in value)
    return repr(value) if isinstance(value, float) else str(value)


def unknown_key(name: str, known: Mapping[str, Key]) -> ValueError:
    """The error for a key that is none of `known`: lists the section, names the nearest key."""
    section, _, leaf = name.rpartition(".")
    inside = [key for key in known if key.rpartition(".")[0] == section]
    if any(key.startswith(f"{name}.") for key in known):
        keys = ", ".join(key for key in known if key.startswith(f"{name}."))
        return ValueError(f"{name!r} is a section, not a key: set one of {keys}")
    sections = sorted({key.partition(".")[0] for key in known if "." in key})
    listing = [key.rpartition(".")[2] for key in inside] if section and inside else sections
    where = f"section {section!r} has" if section and inside else "the sections are"
    # The same name in another section is the likeliest slip, then a misspelling in this one.
    guess = next((key for key in known if key.rpartition(".")[2] == leaf), None)
    guess = guess or names.nearest(name, inside) or names.nearest(name, known)
    hint = f"; nearest: {guess!r}" if guess else ""
    return ValueError(f"unknown config key {name!r}: {where} {', '.join(listing)}{hint}")
