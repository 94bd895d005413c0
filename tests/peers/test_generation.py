"""Greedy, penalised and beam search on twenty random models: the tokens of transformers."""

from __future__ import annotations

import pytest

from tests import golden_store
from tests.peers import generation, record

MODELS = 10  # of each kind


@pytest.mark.parametrize("variant", generation.VARIANTS)
def test_tokens_are_those_of_transformers(variant: str, seed: int) -> None:
    ends = set()
    for number in range(MODELS):
        name = f"generation.{variant}"
        made = record.make(name, seed + number)
        golden_store.check(name, made)
        ends |= {bool((row < 0).any()) for rows in made.outputs.values() for row in rows}
    assert ends == {True, False}  # some rows stopped, some did not
