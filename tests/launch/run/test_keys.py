"""Types of keys: what text and values they take, and the way back."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from launch.run import keys, resolve
from launch.run.keys import Key


def test_base_keys_have_the_types_of_their_defaults() -> None:
    base = keys.base_keys()
    assert base["train.steps"] == Key("train.steps", int, 1000)
    assert base["optimizer.learning_rate"].kind is float
    assert base["data.dir"] == Key("data.dir", str, None, optional=True)
    assert base["data.seed"] == Key("data.seed", int, None, optional=True)
    for key in base.values():
        assert keys.coerce(key, key.default) == key.default


@pytest.mark.parametrize(
    "key",
    [
        Key("k", int, 3),
        Key("k", float, 1e-30),
        Key("k", float, 0.1),
        Key("k", bool, False),
        Key("k", str, "a, b=1"),
        Key("k", int, None, optional=True),
        Key("k", tuple, (1, 2), item=int),
        Key("k", tuple, (), item=int),
        Key("k", tuple, ("a", "b"), item=str),
        Key("k", tuple, (0.5, 1e-7), item=float),
    ],
)
def test_parse_inverts_render(key: Key) -> None:
    assert keys.parse(key, keys.render(key.default)) == key.default


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (Key("k", int, 3), 1.0),
        (Key("k", int, 3), True),
        (Key("k", int, 3), None),
        (Key("k", float, 3.0), "1"),
        (Key("k", str, ""), 1),
        (Key("k", bool, False), 1),
        (Key("k", tuple, (), item=int), 3),
        (Key("k", tuple, (), item=int), (1, "a")),
    ],
)
def test_coerce_refuses_other_types(key: Key, value: Any) -> None:
    with pytest.raises(ValueError, match="is of the wrong type: it must be"):
        keys.coerce(key, value)


def test_nest_inverts_flatten() -> None:
    nested = {"seed": 0, "a": {"b": 1, "c": (1, 2)}, "d": {"e": None}}
    assert keys.nest(keys.flatten(nested)) == nested


def use_config(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> None:
    cls = dataclasses.make_dataclass("Config", [(n, *spec) for n, spec in fields.items()])
    monkeypatch.setattr(resolve, "module", lambda section, name: SimpleNamespace(Config=cls))


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"batch_size": (int, 3)}, "is a key of base.py already"),
        ({"width": (int,)}, "has no default"),
        ({"table": (dict, dataclasses.field(default_factory=dict))}, "cannot hold a value of type"),
        ({"either": (int | str, 3)}, "cannot hold a value of type"),
    ],
)
def test_config_classes_that_no_config_can_hold(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], error: str
) -> None:
    use_config(monkeypatch, **fields)
    with pytest.raises(TypeError, match=error):
        keys.part_keys("data", "any")


def test_fields_become_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    use_config(
        monkeypatch,
        sizes=(tuple[int, ...], (1,)),
        words=(tuple[str, ...], dataclasses.field(default_factory=tuple)),
        maybe=(float | None, None),
    )
    assert keys.part_keys("data", "any") == {
        "data.sizes": Key("data.sizes", tuple, (1,), item=int),
        "data.words": Key("data.words", tuple, (), item=str),
        "data.maybe": Key("data.maybe", float, None, optional=True),
    }
