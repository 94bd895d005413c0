"""Word and character error rates of transcripts.

The error rate of a corpus is the least number of substitutions, deletions and insertions that turn
every reference into its hypothesis, over the number of words (characters) of all references
(Levenshtein 1966; Jelinek 1997, section 1.4): long references count more than short ones, and the
rate can exceed 1.

Legend: N units of the reference, M of the hypothesis.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Hashable, Sequence

import numpy as np

APOSTROPHES = {"\u2019": "'", "\u2018": "'", "\u02bc": "'"}


def normalize(text: str) -> str:
    """The words of a text without what is no matter of hearing.

    In this order: Unicode's compatible composition (NFKC), so that one letter is one character;
    lower case (`str.casefold`); curly apostrophes become straight ones; an apostrophe between two
    letters or digits stays; all other punctuation and symbols (categories P and S) become spaces,
    hyphens too; runs of white space become one space, and none is left at the ends. Numbers,
    abbreviations and spellings stay as they are.
    """
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    text = "".join(APOSTROPHES[c] if c in APOSTROPHES else c for c in text)
    kept = []
    for i, c in enumerate(text):
        inside = c == "'" and text[i - 1 : i].isalnum() and text[i + 1 : i + 2].isalnum()
        mark = unicodedata.category(c)[0] in "PS"
        kept.append(" " if mark and not inside else c)
    return " ".join("".join(kept).split())


def distance(reference: Sequence[Hashable], hypothesis: Sequence[Hashable]) -> int:
    """Levenshtein's: the least number of substitutions, deletions and insertions.

    One row of the table at a time, as arrays: O(N M) time, O(M) memory.
    """
    numbers: dict[Hashable, int] = {}
    coded = [
        np.asarray([numbers.setdefault(unit, len(numbers)) for unit in units], np.int64)
        for units in (reference, hypothesis)
    ]
    place = np.arange(len(hypothesis) + 1)
    row = place.copy()  # by insertions only
    for unit in coded[0]:
        below = row + 1  # a deletion
        below[1:] = np.minimum(below[1:], row[:-1] + (coded[1] != unit))
        # Then insertions, each one more than its left neighbour: a running minimum.
        row = np.minimum.accumulate(below - place) + place
    return int(row[-1])


def error_rates(
    references: Sequence[str], hypotheses: Sequence[str], normalized: bool = True
) -> dict[str, float]:
    """Rates of a corpus: "wer" over words and "cer" over characters, with what they are made of.

    Words are what white space parts. Characters include one space between words. With `normalized`
    both go through `normalize` first.

    Returns: "wer", "cer", "word_edits", "words", "character_edits", "characters".
    Raises:
      ValueError: not as many hypotheses as references, or references without a word.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references but {len(hypotheses)} hypotheses")
    found = dict.fromkeys(("word_edits", "words", "character_edits", "characters"), 0)
    for pair in zip(references, hypotheses, strict=True):
        said, heard = ((normalize(x) if normalized else x).split() for x in pair)
        found["word_edits"] += distance(said, heard)
        found["words"] += len(said)
        found["character_edits"] += distance(" ".join(said), " ".join(heard))
        found["characters"] += len(" ".join(said))
    if not found["words"]:
        raise ValueError("the references have no word, so there is no rate")
    rates = {
        "wer": found["word_edits"] / found["words"],
        "cer": found["character_edits"] / found["characters"],
    }
    return {**rates, **{name: float(value) for name, value in found.items()}}
