"""Whisper's rules, one by one; tests/parity/transcripts.py has them against transformers."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from launch.run import transcript

# Tokens: 0 to 3 text, 4 the end, 5 special, 6 "no timestamps", 7 to 11 times.
RULES = transcript.Rules(suppress=(1, 5), begin_suppress=(2,), end=4, no_timestamps=6)
TEXT, END, TIMES = {0, 2, 3}, {4}, {7, 8, 9, 10, 11}
FLAT = (0.0,) * 12  # times together are then likelier than any text
TALK = (9.0,) * 5 + (0.0,) * 7  # text and the end are likely


def allowed(
    rules: transcript.Rules, made: tuple[int, ...], logits: tuple[float, ...] = TALK
) -> set[int]:
    """Tokens that can come after `made`, behind a prompt of one token and before padding."""
    row = jnp.asarray([[10, *made, *(11,) * (6 - len(made))]])
    ends, count = jnp.asarray([1 + len(made)]), jnp.asarray([len(made)])
    found = rules(jnp.asarray([logits]), row, ends, count)
    return set(np.flatnonzero(np.isfinite(found[0])).tolist())


@pytest.mark.parametrize(
    "made, expected",
    {
        (): TIMES,  # it starts with a time
        (8,): TEXT | END,  # then there is text
        (8, 0): TEXT | END | {9, 10, 11},  # a segment does not end when it starts
        (8, 0, 10): END | {10, 11},  # a time is followed by a time, or the end
        (8, 0, 10, 10): TEXT | END,  # the pair is complete
        (8, 0, 10, 10, 3): TEXT | END | {11},
    }.items(),
)
def test_times_come_in_order_and_in_pairs(made: tuple[int, ...], expected: set[int]) -> None:
    assert allowed(RULES, made) == expected


def test_the_first_time_has_a_limit() -> None:
    assert allowed(dataclasses.replace(RULES, max_initial=1), ()) == {7, 8}
    assert allowed(dataclasses.replace(RULES, max_initial=0), ()) == {7}


def test_times_that_are_likelier_than_any_text_are_taken() -> None:
    assert allowed(RULES, (8, 0), FLAT) == {9, 10, 11}
    just = (1.0,) * 5 + (0.0,) * 7  # three times: log 3 = 1.1
    assert allowed(RULES, (8, 0), just) == {9, 10, 11}
    assert allowed(RULES, (8, 0), tuple(1.2 * x for x in just)) == TEXT | END | {9, 10, 11}


def test_without_timestamps_only_suppression_is_left() -> None:
    rules = dataclasses.replace(RULES, no_timestamps=-1)
    assert allowed(rules, ()) == set(range(12)) - {1, 2, 5}
    assert allowed(rules, (0,)) == set(range(12)) - {1, 5}


def test_nothing_but_the_only_tokens_is_written() -> None:
    rules = transcript.Rules(suppress=(3,), only=(0, 3, 8), end=4)
    assert allowed(rules, ()) == allowed(rules, (0,)) == {0, 8}


GENERATION = {
    "eos_token_id": 4,
    "decoder_start_token_id": 5,
    "no_timestamps_token_id": 6,
    "suppress_tokens": None,
    "begin_suppress_tokens": [2],
    "max_initial_timestamp_index": 50,
}
WORLD = {"lang_to_id": {"<|en|>": 20, "<|de|>": 21}, "task_to_id": {"translate": 30}}


def test_rules_and_prompts_of_a_published_directory() -> None:
    assert transcript.rules(GENERATION, timestamps=True) == transcript.Rules(
        (), (2,), end=4, no_timestamps=6, max_initial=50
    )
    assert transcript.rules(GENERATION).no_timestamps == -1
    assert transcript.prompt(GENERATION) == (5, 6)
    assert transcript.prompt(GENERATION, timestamps=True) == (5,)
    assert transcript.prompt(GENERATION | WORLD, "de", "translate") == (5, 21, 30, 6)


def test_what_the_model_has_no_token_for_is_refused() -> None:
    with pytest.raises(ValueError, match=r"language 'dee'.*'de'"):
        transcript.prompt(GENERATION | WORLD, "dee", "translate")
    with pytest.raises(ValueError, match=r"task 'translat'.*'translate'"):
        transcript.prompt(GENERATION | WORLD, "de", "translat")
    with pytest.raises(ValueError, match=r"language='de' .* for English alone"):
        transcript.prompt(GENERATION, "de")
    with pytest.raises(ValueError, match=r"eos_token_id=None must be a token"):
        transcript.rules({})
