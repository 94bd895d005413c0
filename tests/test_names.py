"""Looking a name up: the value when it is there, else the list and the nearest name."""

from __future__ import annotations

import pytest

from nn import names


def test_lookup_finds() -> None:
    assert names.lookup("activation", "gelu", {"gelu": 1, "relu": 2}) == 1


def test_lookup_finds_a_value_that_is_false() -> None:
    assert names.lookup("rule", "none", {"none": None}) is None


def test_unknown_name_says_all() -> None:
    message = "unknown activation 'gelo': choose from gelu, glu, relu; nearest: 'gelu'"
    with pytest.raises(ValueError, match=f"^{message}$"):
        names.lookup("activation", "gelo", {"relu": 0, "glu": 1, "gelu": 2})


def test_no_guess_where_nothing_is_near() -> None:
    with pytest.raises(ValueError, match=r"^unknown family 'xyz': choose from mlp, resnet$"):
        names.lookup("family", "xyz", {"resnet": 0, "mlp": 1})


@pytest.mark.parametrize(
    ("name", "expected"),
    [("fdsp", "fsdp"), ("tensr", "tensor"), ("zzz", None), ("", None)],
)
def test_nearest(name: str, expected: str | None) -> None:
    assert names.nearest(name, iter(["data", "fsdp", "tensor"])) == expected


def test_nearest_of_nothing() -> None:
    assert names.nearest("a", []) is None


def test_unknown_takes_an_iterator_once() -> None:
    assert str(names.unknown("axis", "fdsp", iter(["fsdp", "data"]))) == (
        "unknown axis 'fdsp': choose from data, fsdp; nearest: 'fsdp'"
    )
