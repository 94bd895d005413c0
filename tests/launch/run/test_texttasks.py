"""Tasks on local files: what is read, what is asked of the model, what follows from its answers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from launch.run import language, text, texttasks
from launch.run.language import Language
from launch.run.likelihood import Score

NO_SCORER: Any = None


def by_bytes(text: str) -> list[int]:
    return list(text.encode())


def by_words(text: str) -> list[int]:
    """A token per word with the spaces before it, as a tokeniser with merges has."""
    words, word = [], ""
    for c in text:
        if c == " " and word.strip():
            words, word = [*words, word], ""
        word += c
    return [len(w) * 1000 + sum(w.encode()) for w in [*words, word] if w]


BYTES = Language(NO_SCORER, by_bytes, (10,))


def test_a_continuation_follows_its_context() -> None:
    assert BYTES.continuation("ab ", "cd") == (list(b"ab cd"), 3)
    assert BYTES.continuation("", "cd") == (list(b"\ncd"), 1)
    assert BYTES.document("\na") == (list(b"\n\na"), 1)
    started = Language(NO_SCORER, by_bytes, (1, 2), always=True)
    assert started.continuation("a", "b") == ([1, 2, 97, 98], 3)


def test_a_token_across_the_border_counts_as_continuation() -> None:
    model = Language(NO_SCORER, by_words, (7,))
    assert model.continuation("one two", " three").first == 2
    # The space that ends the context is part of the next token.
    asked = model.continuation("one two ", "three")
    assert (asked.tokens, asked.first) == (by_words("one two three"), 2)
    # The only token of the context is another one with the continuation: all of it is scored.
    assert model.continuation("on", "e") == ([7, *by_words("one")], 1)
    stripped = Language(NO_SCORER, lambda text: by_words(text.rstrip()), (7,))
    with pytest.raises(ValueError, match="' ' adds no token"):
        stripped.continuation("one", " ")


class Special:
    """Words by their lengths; `encode` puts `before` before them and 9 after them."""

    stop = (9,)

    def __init__(self, before: list[int]) -> None:
        self.before = before

    def plain(self, content: str) -> list[int]:
        return [len(word) for word in content.split()]

    def encode(self, content: str) -> list[int]:
        return [*self.before, *self.plain(content), 9]

    def decode(self, tokens: Any) -> str:
        raise NotImplementedError


def test_the_prefix_is_what_the_tokeniser_puts_before_a_text() -> None:
    begins = language.of_tokenizer(NO_SCORER, Special([7, 8]), 10)
    assert begins.continuation("a bb", "ccc").tokens == [7, 8, 1, 5]
    assert begins.continuation("a bb ", "ccc") == ([7, 8, 1, 2, 3], 4)
    assert begins.document("a") == ([7, 8, 1], 2)
    # One that puts nothing there: an empty text, where nothing else is before a token.
    plain = language.of_tokenizer(NO_SCORER, Special([]), 10)
    assert plain.continuation("a ", "b") == ([1, 1], 1)
    assert plain.continuation("", "b") == ([9, 1], 1)
    assert language.of_tokenizer(NO_SCORER, text.Bytes(256), 256).prefix == (10,)
    with pytest.raises(ValueError, match="token 12 of a text: the model has 10"):
        plain.document("a" * 12)


def write(path: Path, *lines: Any) -> str:
    path.write_text(
        "".join(x + "\n" if isinstance(x, str) else json.dumps(x) + "\n" for x in lines)
    )
    return str(path)


def test_files_are_read(tmp_path: Path) -> None:
    good = {"context": "a", "choices": ["b", "c\u2028"], "answer": 1}
    path = write(
        tmp_path / "x.jsonl", {**good, "more": 1}, "", json.dumps(good, ensure_ascii=False)
    )
    assert texttasks.read(path, "choice") == [good, good]
    book = tmp_path / "book.txt"
    book.write_bytes(b"one\r\n{two}\n")
    assert texttasks.read(str(book), "perplexity") == [{"text": "one\r\n{two}\n"}]
    path = write(tmp_path / "y.jsonl", {"text": "one"}, {"text": ""})
    assert texttasks.read(path, "perplexity") == [{"text": "one"}, {"text": ""}]


GOOD = {"context": "a", "choices": ["b", "c"], "answer": 1}
BAD = {
    "no JSON": ("{'context': 1}", "x.jsonl:2: not JSON"),
    "no object": ([1], "x.jsonl:2: a list, not an object"),
    "a key is missing": ({"context": "a", "answer": 0}, "x.jsonl:2: no 'choices'"),
    "choices is a string": ({**GOOD, "choices": "bc"}, "choices='bc': must be a list of strings"),
    "no choices": ({**GOOD, "choices": []}, "must be a list of strings"),
    "a choice is a number": ({**GOOD, "choices": ["b", 1]}, "must be a list of strings"),
    "an empty choice": ({**GOOD, "choices": ["b", ""]}, "must not be empty"),
    "the answer is true": ({**GOOD, "answer": True}, "answer=True: must be a whole number"),
    "the answer is none": ({**GOOD, "answer": 2}, "x.jsonl:2: answer=2: must be from 0 to 1"),
    "a negative answer": ({**GOOD, "answer": -1}, "answer=-1: must be from 0 to 1"),
    "half a surrogate pair": ({**GOOD, "context": "\ud800"}, "must be a string"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_named(name: str, tmp_path: Path) -> None:
    line, message = BAD[name]
    path = write(tmp_path / "x.jsonl", GOOD, line)
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        texttasks.read(path, "choice")


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        texttasks.read(str(tmp_path / "none.jsonl"), "match")
    with pytest.raises(ValueError, match="nearest: 'match'"):
        texttasks.read("x", "mach")
    (tmp_path / "x.txt").write_bytes(b"ab\xff")
    with pytest.raises(ValueError, match="not UTF-8 at byte 2"):
        texttasks.read(str(tmp_path / "x.txt"), "perplexity")
    with pytest.raises(ValueError, match="the file is empty"):
        texttasks.read(write(tmp_path / "y.jsonl", ""), "match")
    with pytest.raises(ValueError, match="target='': a continuation must not be empty"):
        texttasks.read(write(tmp_path / "z.jsonl", {"context": "", "target": ""}), "match")
    with pytest.raises(ValueError, match="nothing to predict"):
        texttasks.requests("perplexity", BYTES, [{"text": ""}])


def test_bits_per_byte_are_of_the_text_not_of_its_tokens() -> None:
    items = [{"text": "h\u00e9 ya"}, {"text": ""}, {"text": "x"}]
    scores = [Score(-6.0, 2, False), Score(0.0, 0, True), Score(-1.0, 1, False)]
    means, found = texttasks.perplexity(items, scores)
    assert (means["bytes"], means["tokens"], means["documents"]) == (7, 3, 3)
    assert means["bits_per_byte"] == pytest.approx(7 / math.log(2) / 7)
    assert means["perplexity"] == pytest.approx(math.exp(7 / 3))
    assert means["word_perplexity"] == pytest.approx(math.exp(7 / 4))
    assert found[0] == {"log_likelihood": -6.0, "tokens": 2, "bytes": 6, "words": 2}


def choice_of(values: list[float], choices: list[str], answer: int) -> dict[str, float]:
    item = {"context": "", "choices": choices, "answer": answer}
    return texttasks.choice([item], [Score(v, 1, False) for v in values])[0]


def test_choices_by_sum_by_characters_and_by_bytes() -> None:
    def right(answer: int) -> tuple[float, ...]:
        # Per character -1, -0.9, -0.95; per byte -1, -0.9, -0.475.
        found = choice_of([-1.0, -1.8, -1.9], ["a", "bb", "\u00e9\u00e9"], answer)
        return found["acc"], found["acc_norm"], found["acc_bytes"]

    assert [right(answer) for answer in range(3)] == [(1, 0, 0), (0, 1, 0), (0, 0, 1)]


def test_of_equal_choices_the_first_counts() -> None:
    assert choice_of([-2.0, -2.0], ["a", "b"], 0)["acc"] == 1
    assert choice_of([-2.0, -2.0], ["a", "b"], 1)["acc"] == 0


def test_choices_go_with_their_items() -> None:
    items = [
        {"context": "q", "choices": ["a", "b", "c"], "answer": 2},
        {"context": "r", "choices": ["d", "e"], "answer": 0},
    ]
    asked = texttasks.requests("choice", BYTES, items)
    assert [bytes(r.tokens) for r in asked] == [b"qa", b"qb", b"qc", b"rd", b"re"]
    scores = [Score(-float(n), 1, False) for n in (3, 2, 1, 5, 4)]
    means, found = texttasks.choice(items, scores)
    assert (means["acc"], means["items"]) == (0.5, 2)
    assert [x["pick"] for x in found] == [2, 1]
    assert found[1]["log_likelihoods"] == [-5.0, -4.0]


def test_match() -> None:
    items = [{"context": "a", "target": "b"}] * 3
    scores = [Score(-1.0, 2, True), Score(-3.0, 1, False), Score(-1.0, 1, False)]
    means, _ = texttasks.match(items, scores)
    assert means["match"] == pytest.approx(1 / 3)
    assert means["perplexity"] == pytest.approx(math.exp(5 / 4))
    assert texttasks.match(items[:1], [Score(-1e6, 1, False)])[0]["perplexity"] == math.inf


def test_word_errors_of_items() -> None:
    items = [{"reference": "A b.", "hypothesis": "a c"}, {"reference": "d", "hypothesis": "d"}]
    means, found = texttasks.word_errors(items)
    assert means["wer"] == pytest.approx(1 / 3)
    assert found == [{"word_edits": 1, "words": 2}, {"word_edits": 0, "words": 1}]
