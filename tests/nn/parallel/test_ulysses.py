"""Which attention over `context` a run gets, and the words that say so."""

from __future__ import annotations

import pytest

from nn.parallel.ulysses import choose

# wanted, context, tensor, heads, kv_heads, in_order -> chosen, words of the reason
CHOICES = [
    (("auto", 1, 1, 8, 8, False), "ring", ""),
    (("auto", 2, 1, 8, 8, False), "ring", "1.0 times less"),  # 8 * 2 against 8 + 8 heads
    (("auto", 4, 1, 8, 8, False), "ulysses", "2.0 times less"),  # 8 * 4 against 8 + 8
    (("auto", 8, 1, 32, 8, False), "ring", "1.6 times less"),  # 8 * 8 against 32 + 8
    (("auto", 16, 1, 32, 8, False), "ulysses", "2.7 times less"),  # 8 * 16 against 32 + 16
    (("auto", 8, 2, 8, 8, False), "ring", "4 heads per shard do not divide"),
    (("auto", 8, 1, 8, 2, True), "ulysses", "in order"),
    (("auto", 8, 1, 0, 0, True), "ulysses", "in order"),  # no attention
    (("ring", 4, 1, 8, 8, False), "ring", "as configured"),
    (("ulysses", 2, 1, 8, 8, False), "ulysses", "as configured"),
    (("gather", 4, 1, 8, 8, False), "gather", "as configured"),
]


@pytest.mark.parametrize(("given", "chosen", "words"), CHOICES)
def test_choice_and_reason(
    given: tuple[str, int, int, int, int, bool], chosen: str, words: str
) -> None:
    name, why = choose(*given)
    assert name == chosen
    assert words in why and bool(why) == bool(words)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("ring", 4, 1, 8, 8, True), "nearest: mesh.attention='ulysses'"),
        (("gather", 4, 1, 8, 8, True), "'gather' lays .*; nearest: mesh.attention='ulysses'"),
        (("ulysses", 8, 2, 8, 8, False), "there are 4; nearest: mesh.context=4"),
        (("auto", 6, 1, 8, 8, True), "there are 8; nearest: mesh.context=2"),
    ],
)
def test_what_cannot_be_is_refused(given: tuple[str, int, int, int, int, bool], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        choose(*given)
