"""Error rates of transcripts: by hand, and against all ways to align two short sequences."""

from __future__ import annotations

import functools
import random

import pytest

from nn.analysis import wer


def by_recursion(a: str, b: str) -> int:
    """The definition: the last units are aligned, or one of them is left over."""

    @functools.cache
    def best(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        same = best(i - 1, j - 1) + (a[i - 1] != b[j - 1])
        return min(same, best(i - 1, j) + 1, best(i, j - 1) + 1)

    return best(len(a), len(b))


def test_distance_equals_brute_force() -> None:
    draw = random.Random(0)
    for _ in range(400):
        a, b = ("".join(draw.choices("abc", k=draw.randrange(9))) for _ in range(2))
        assert wer.distance(a, b) == by_recursion(a, b), (a, b)


def test_distance_by_hand() -> None:
    assert wer.distance("kitten", "sitting") == 3
    assert wer.distance(["the", "cat", "sat"], ["cat", "sat", "down"]) == 2
    assert (wer.distance("", "ab"), wer.distance("ab", ""), wer.distance("", "")) == (2, 2, 0)


def test_a_corpus_is_all_edits_over_all_units() -> None:
    # One of 8 words wrong in the first, 3 of 2 in the second: not the mean of 1/8 and 3/2.
    references = ["a b c d e f g h", "x y"]
    hypotheses = ["a b c d e f g i", "p q r"]
    rates = wer.error_rates(references, hypotheses)
    assert (rates["word_edits"], rates["words"]) == (4, 10)
    assert rates["wer"] == pytest.approx(0.4)
    # Characters: 1 of 15; x, y replaced and a space and a letter added, of 3.
    assert (rates["character_edits"], rates["characters"]) == (5, 18)
    assert rates["cer"] == pytest.approx(5 / 18)


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("Hello,  WORLD!\n", "hello world"),
        ("don\u2019t 'quote' rock'n'roll dogs'", "don't quote rock'n'roll dogs"),
        ("well-known — 3.5 €", "well known 3 5"),
        ("\ufb01ne Stra\u00dfe e\u0301", "fine strasse \u00e9"),
        ("...", ""),
    ],
)
def test_normalisation(text: str, wanted: str) -> None:
    assert wer.normalize(text) == wanted
    assert wer.normalize(wanted) == wanted


def test_normalisation_can_be_left_out() -> None:
    assert wer.error_rates(["Yes, sir"], ["yes sir"])["wer"] == 0
    assert wer.error_rates(["Yes, sir"], ["yes sir"], normalized=False)["wer"] == 0.5


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="2 references but 1 hypotheses"):
        wer.error_rates(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="no word"):
        wer.error_rates(["?!"], ["a"])
