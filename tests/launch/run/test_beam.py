"""Beam search against all sequences there are, and against lists of Python numbers."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from launch.run import decode
from launch.run.beam import Beam
from launch.run.decode import Plain
from launch.run.logits import Sampling
from tests.launch.run.rows_of_tokens import PROMPTS, Tiny, inputs_of, mesh_of, new_of, view_of

FEW = Tiny(vocab_size=4, scale=2.0)  # tokens, so that all sequences can be written down
TINY = Tiny()
SHORT = [[0, 3, 1], [2]]


def beamed(tiny: Tiny, prompts: list[list[int]], new: int, **options: Any) -> list[list[int]]:
    loop = decode.loop_of(tiny.model, new, Sampling(temperature=0, **options))
    return new_of(view_of(loop, tiny.params, inputs_of(prompts)), prompts)


def log_probabilities(tiny: Tiny, rows: list[list[int]]) -> np.ndarray:
    x = tiny.logits(rows).astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("options", [{}, {"stop": (1,), "length_penalty": 0.0}])
def test_wide_enough_a_beam_finds_the_best_of_all_sequences(options: dict[str, Any]) -> None:
    """16 beams of 4 tokens leave nothing out in 3 steps."""
    made = beamed(FEW, SHORT, 3, beams=16, **options)
    stop, power = options.get("stop", ()), options.get("length_penalty", 1.0)
    for prompt, found in zip(SHORT, made, strict=True):
        worth: dict[tuple[int, ...], float] = {}
        starts = [list(s) for n in range(3) for s in itertools.product(range(4), repeat=n)]
        after = log_probabilities(FEW, [[*prompt, *start] for start in starts])
        table = {tuple(start): row for start, row in zip(starts, after, strict=True)}
        for sequence in itertools.product(range(4), repeat=3):
            ends = [i + 1 for i, token in enumerate(sequence) if token in stop]
            ended = sequence[: min([*ends, 3])]
            total = sum(table[ended[:i]][token] for i, token in enumerate(ended))
            worth[ended] = total / len(ended) ** power
        assert tuple(found) == max(worth, key=lambda s: worth[s])


def by_lists(
    prompt: list[int], new: int, K: int, stop: tuple[int, ...], power: float, early: bool
) -> list[int]:
    """The rules of `launch.run.beam`, for one row."""
    opened, best = [(0.0, list(prompt))], []
    for made in range(1, new + 1):
        after = log_probabilities(TINY, [row for _, row in opened])
        every = [
            (value + after[i, token], [*row, token])
            for i, (value, row) in enumerate(opened)
            for token in range(after.shape[1])
        ]
        every.sort(key=lambda pair: -pair[0])
        candidates = every[: (1 + max(1, len(stop))) * K]
        ends = [row[-1] in stop or made == new for _, row in candidates]
        finished = [c for c, end in zip(candidates[:K], ends, strict=False) if end]
        best += [(value / made**power, row) for value, row in finished]
        best = sorted(best, key=lambda pair: -pair[0])[:K]
        opened = [c for c, end in zip(candidates, ends, strict=True) if not end][:K]
        full = len(best) == K
        if made == new or (full and (early or opened[0][0] / made**power <= best[-1][0])):
            break
    return best[0][1][len(prompt) :]


@pytest.mark.parametrize(
    ("K", "power", "early"), [(3, 1.0, False), (2, 0.3, True), (3, -1.0, False)]
)
def test_beams_follow_their_rules(K: int, power: float, early: bool) -> None:
    stop = (79, 91, 60, 52)
    made = beamed(TINY, PROMPTS, 7, beams=K, stop=stop, length_penalty=power, early_stopping=early)
    expected = [by_lists(prompt, 7, K, stop, power, early) for prompt in PROMPTS]
    assert made == expected
    assert {row[-1] in stop for row in made} == {True, False} or power < 0


def test_one_beam_is_greedy() -> None:
    how = Sampling(temperature=0, stop=(91,))
    inputs = inputs_of(PROMPTS)
    made, greedy = (
        new_of(view_of(kind(TINY.model, how, 6), TINY.params, inputs), PROMPTS)
        for kind in (Beam, Plain)
    )
    assert made == greedy
    assert min(map(len, made)) < 6


def test_beams_on_a_mesh_are_those_of_one_device() -> None:
    loop = decode.loop_of(TINY.model, 6, Sampling(temperature=0, beams=3, stop=(79,)))
    inputs = inputs_of(PROMPTS)
    places = mesh_of(TINY.named, data=2, tensor=2)
    views = [view_of(loop, TINY.params, inputs, *where) for where in ((), places)]
    assert new_of(views[0], PROMPTS) == new_of(views[1], PROMPTS)
    greedy = view_of(decode.loop_of(TINY.model, 6, Sampling(temperature=0)), TINY.params, inputs)
    assert new_of(views[0], PROMPTS) != new_of(greedy, PROMPTS)
