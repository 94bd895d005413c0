"""What a language model is measured by on local files: perplexity, multiple choice, greedy match.

Files are JSON lines in UTF-8, one object per line; empty lines do not count. Strings are taken as
they are: a space between a context and its continuation must be in one of them.

    perplexity  {"text": "..."}; a file of another name than *.jsonl or *.json is one text
    choice      {"context": "...", "choices": ["...", "..."], "answer": 0}
    match       {"context": "...", "target": "..."}
    wer         {"reference": "...", "hypothesis": "..."}; needs no model
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launch.run.language import Language
from launch.run.likelihood import Request, Score
from nn import names
from nn.analysis import wer

Item = dict[str, Any]
Result = tuple[dict[str, float], list[Item]]  # of all items, and of each

STRING, STRINGS, WHOLE = "a string", "a list of strings", "a whole number"
# Task -> keys of an item with their kinds.
FIELDS: Mapping[str, Mapping[str, str]] = {
    "perplexity": {"text": STRING},
    "choice": {"context": STRING, "choices": STRINGS, "answer": WHOLE},
    "match": {"context": STRING, "target": STRING},
    "wer": {"reference": STRING, "hypothesis": STRING},
}


def read(path: str, task: str) -> list[Item]:
    """The items of a file; other keys of an item are ignored.

    Raises:
      FileNotFoundError: no such file.
      ValueError: an unknown task, no items, or a bad line, by its number.
    """
    fields = names.lookup("--task", task, FIELDS)
    if not Path(path).is_file():
        raise FileNotFoundError(f"--data={path}: no such file")
    try:
        content = Path(path).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--data={path}: not UTF-8 at byte {error.start}") from error
    if task == "perplexity" and Path(path).suffix not in (".jsonl", ".json"):
        items = [{"text": content}] if content else []
    else:
        lines = enumerate(content.split("\n"), 1)  # a string may hold other ends of lines
        items = [_item(f"{path}:{n}", line, task, fields) for n, line in lines if line.strip()]
    if not items:
        raise ValueError(f"--data={path}: the file is empty")
    return items


def _item(place: str, line: str, task: str, fields: Mapping[str, str]) -> Item:
    """One line, checked; ValueError with its place."""
    try:
        item = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: not JSON ({error})") from error
    if not isinstance(item, dict):
        raise ValueError(f"{place}: a {type(item).__name__}, not an object")
    for name, kind in fields.items():
        if name not in item:
            raise ValueError(
                f"{place}: no {name!r}; an item of --task={task} has {', '.join(fields)}"
            )
        if not _is(kind, item[name]):
            raise ValueError(f"{place}: {name}={item[name]!r}: must be {kind}")
    if task == "choice" and not 0 <= item["answer"] < len(item["choices"]):
        raise ValueError(
            f"{place}: answer={item['answer']}: must be from 0 to {len(item['choices']) - 1}"
        )
    for name in ("choices", "target"):
        if name in fields and not (item[name] and all(item[name])):
            raise ValueError(f"{place}: {name}={item[name]!r}: a continuation must not be empty")
    return {name: item[name] for name in fields}


def _is(kind: str, value: Any) -> bool:
    if kind == WHOLE:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == STRINGS:
        return isinstance(value, list) and bool(value) and all(_is(STRING, x) for x in value)
    # JSON can write half a surrogate pair, which is no text.
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def requests(task: str, model: Language, items: Sequence[Item]) -> list[Request]:
    """What is to be scored, in the order of the items and of their choices.

    Raises ValueError where there is nothing to score: texts that are all empty, a continuation
    without tokens.
    """
    if task == "perplexity":
        documents = [model.document(item["text"]) for item in items]
        if not any(len(document.tokens) > document.first for document in documents):
            raise ValueError("the texts are empty, so there is nothing to predict")
        return documents
    if task == "choice":
        return [model.continuation(i["context"], text) for i in items for text in i["choices"]]
    return [model.continuation(item["context"], item["target"]) for item in items]


def perplexity(items: Sequence[Item], scores: Sequence[Score]) -> Result:
    """How well texts are predicted; totals over all of them, each a document of its own.

    Means: "bits_per_byte" of the UTF-8 text, "perplexity" per token, "word_perplexity" per word
    (one more than there are runs of white space, as lm-evaluation-harness counts), "loss" in nats
    per token, and the numbers of documents, tokens, bytes and words.
    """
    found = [
        {
            "log_likelihood": score.log_likelihood,
            "tokens": score.tokens,
            "bytes": len(item["text"].encode("utf-8")),
            "words": len(re.split(r"\s+", item["text"])),
        }
        for item, score in zip(items, scores, strict=True)
    ]
    nats = -math.fsum(x["log_likelihood"] for x in found)
    sizes = {name: sum(x[name] for x in found) for name in ("tokens", "bytes", "words")}
    means = {
        "bits_per_byte": nats / math.log(2) / sizes["bytes"],
        "perplexity": _exp(nats / sizes["tokens"]),
        "word_perplexity": _exp(nats / sizes["words"]),
        "loss": nats / sizes["tokens"],
        "documents": len(items),
    }
    return {**means, **sizes}, found


def choice(items: Sequence[Item], scores: Sequence[Score]) -> Result:
    """Whether the right continuation is the likeliest of several.

    Means: "acc" by the log-likelihood of each choice, "acc_norm" by that over its characters,
    "acc_bytes" over its bytes (the names of lm-evaluation-harness); of equal ones the first counts.
    """
    left = iter(scores)
    found = []
    for item in items:
        choices = item["choices"]
        nats = np.asarray([next(left).log_likelihood for _ in choices])
        normed = {
            "acc": nats,
            "acc_norm": nats / [len(text) for text in choices],
            "acc_bytes": nats / [len(text.encode("utf-8")) for text in choices],
        }
        hits = {name: int(np.argmax(x)) == item["answer"] for name, x in normed.items()}
        found.append({"log_likelihoods": nats.tolist(), "pick": int(np.argmax(nats)), **hits})
    means = {n: float(np.mean([x[n] for x in found])) for n in ("acc", "acc_norm", "acc_bytes")}
    return {**means, "items": len(items)}, found


def match(items: Sequence[Item], scores: Sequence[Score]) -> Result:
    """Whether greedy decoding would give the target, token by token.

    Means: "match"; "perplexity" of the targets per token.
    """
    found = [
        {"match": score.greedy, "log_likelihood": score.log_likelihood, "tokens": score.tokens}
        for score in scores
    ]
    nats = -math.fsum(score.log_likelihood for score in scores)
    means = {
        "match": float(np.mean([score.greedy for score in scores])),
        "perplexity": _exp(nats / sum(score.tokens for score in scores)),
        "items": len(items),
    }
    return means, found


SUMMARIES: Mapping[str, Callable[[Sequence[Item], Sequence[Score]], Result]] = {
    "perplexity": perplexity,
    "choice": choice,
    "match": match,
}


def word_errors(items: Sequence[Item]) -> Result:
    """Error rates of transcripts: see `nn.analysis.wer.error_rates`."""
    pairs = [(item["reference"], item["hypothesis"]) for item in items]
    found = [
        {
            "word_edits": wer.distance(*(wer.normalize(x).split() for x in pair)),
            "words": len(wer.normalize(pair[0]).split()),
        }
        for pair in pairs
    ]
    said, heard = zip(*pairs, strict=True)
    return wer.error_rates(said, heard), found


def _exp(nats: float) -> float:
    """e to the power of `nats`; infinite where a float cannot hold it."""
    return math.inf if nats > 700 else math.exp(nats)
