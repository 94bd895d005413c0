"""Text to tokens and back: bytes, or the tokeniser that lies beside published weights.

`tokenizer.json` is read by the package `tokenizers`, `tokenizer.model` and `spiece.model` by
`sentencepiece`; both come with the extra `text`.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

JSON = "tokenizer.json"
# In the order in which they are looked for; all but the first are sentencepiece's.
FILES = (JSON, "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what the bytes of half a character decode to


class Tokenizer(Protocol):
    """stop: tokens that end a text."""

    stop: tuple[int, ...]

    def encode(self, text: str) -> list[int]:
        """Tokens, with those that the model expects around a text; at least one."""

    def plain(self, text: str) -> list[int]:
        """Tokens of the text alone."""

    def decode(self, tokens: Iterable[int]) -> str:
        """Text, without the special tokens."""


class Bytes:
    """The UTF-8 bytes. Raises ValueError where the vocabulary is no vocabulary of bytes."""

    stop: tuple[int, ...] = ()

    def __init__(self, vocabulary: int):
        if vocabulary < 256:
            raise ValueError(f"model.vocab_size={vocabulary}: text needs the 256 bytes")

    def encode(self, text: str) -> list[int]:
        """An empty text starts from a line end."""
        return self.plain(text or "\n")

    def plain(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def decode(self, tokens: Iterable[int]) -> str:
        """What is no byte is left out, what is no UTF-8 becomes the replacement character."""
        values = np.asarray(list(tokens), np.int64)
        inside = values[(values >= 0) & (values < 256)]
        return bytes(inside.astype(np.uint8)).decode("utf-8", errors="replace")


class Json:
    """The tokeniser of a `tokenizer.json`, which adds special tokens as the file says."""

    def __init__(self, path: Path):
        library = _package("tokenizers", path)
        try:
            self._held = library.Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises no narrower one
            raise ValueError(f"{path}: not a tokeniser of `tokenizers` ({error})") from None
        # What a file may ask for in training.
        self._held.no_padding()
        self._held.no_truncation()
        self.bos, self.stop = special_tokens(path.parent, self._held.token_to_id)

    def encode(self, text: str) -> list[int]:
        found = self._held.encode(text).ids
        return found or _first(self.bos, self.stop, self.plain("\n"))

    def plain(self, text: str) -> list[int]:
        found: list[int] = self._held.encode(text, add_special_tokens=False).ids
        return found

    def decode(self, tokens: Iterable[int]) -> str:
        text: str = self._held.decode([int(token) for token in tokens])
        return text

    def added(self) -> dict[str, int]:
        """The tokens beside those of text, special ones among them, by name."""
        return {x.content: token for token, x in self._held.get_added_tokens_decoder().items()}


class Pieces:
    """A sentencepiece model (Kudo & Richardson 2018).

    Text begins with its begin token where the model has one, as Llama's does, and ends with its
    end token where it has none, as T5's does; `add_bos_token` and `add_eos_token` in
    tokenizer_config.json say otherwise.
    """

    def __init__(self, path: Path):
        library = _package("sentencepiece", path)
        try:
            self._held = library.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{path}: not a model of `sentencepiece` ({error})") from None
        own = {"bos": self._held.bos_id(), "eos": self._held.eos_id()}
        self.bos, self.stop = special_tokens(path.parent, self._id)
        if self.bos is None and own["bos"] >= 0:
            self.bos = own["bos"]
        if not self.stop and own["eos"] >= 0:
            self.stop = (own["eos"],)
        options = _read(path.parent / "tokenizer_config.json")
        begins, ends = own["bos"] >= 0, own["bos"] < 0 <= own["eos"]
        if options.get("add_bos_token") is not None:
            begins = bool(options["add_bos_token"])
        if options.get("add_eos_token") is not None:
            ends = bool(options["add_eos_token"])
        self._options = {"add_bos": begins, "add_eos": ends}

    def encode(self, text: str) -> list[int]:
        found: list[int] = self._held.encode(text, **self._options)
        return found or _first(self.bos, self.stop, self.plain("\n"))

    def plain(self, text: str) -> list[int]:
        found: list[int] = self._held.encode(text, add_bos=False, add_eos=False)
        return found

    def decode(self, tokens: Iterable[int]) -> str:
        size = self._held.get_piece_size()
        text: str = self._held.decode([int(token) for token in tokens if 0 <= token < size])
        return text

    def _id(self, piece: str) -> int | None:
        found: int = self._held.piece_to_id(piece)
        return found if self._held.id_to_piece(found) == piece else None


def load(directory: str | Path) -> Tokenizer:
    """The tokeniser of a directory.

    Raises:
      FileNotFoundError: there is none.
      ValueError: its package is not installed, or it is damaged.
    """
    for name in FILES:
        path = Path(directory) / name
        if path.is_file():
            return Json(path) if name == JSON else Pieces(path)
    raise FileNotFoundError(f"{directory}: no tokeniser there; looked for {', '.join(FILES)}")


def is_there(directory: str | Path) -> bool:
    """Whether a directory has a file that `load` would read."""
    return any((Path(directory) / name).is_file() for name in FILES)


def special_tokens(folder: Path, id_of: Any) -> tuple[int | None, tuple[int, ...]]:
    """The token that begins a text, if any, and those that end one.

    Of generation_config.json, else of config.json, else those that tokenizer_config.json names.
    id_of: token of a name, or None.
    """
    found: dict[str, list[int]] = {}
    for kind in ("bos", "eos"):
        for file in ("generation_config.json", "config.json"):
            held = _read(folder / file)
            # Models of several parts keep the language model's options in a section.
            value = held.get(
                f"{kind}_token_id", held.get("text_config", {}).get(f"{kind}_token_id")
            )
            if value is not None:
                found[kind] = value if isinstance(value, list) else [value]
                break
        else:
            words = _read(folder / "tokenizer_config.json")
            value = words.get(f"{kind}_token")
            name = value["content"] if isinstance(value, dict) else value
            number = id_of(name) if name else None
            found[kind] = [] if number is None else [number]
    return next(iter(found["bos"]), None), tuple(found["eos"])


def stop_tokens(tokenizer: Tokenizer, text: bytes) -> tuple[int, ...]:
    """Tokens that end a text: each byte of `text`, or the one token that it is.

    Raises ValueError where it is several.
    """
    if isinstance(tokenizer, Bytes):
        return tuple(text)
    tokens = tokenizer.plain(text.decode("utf-8")) if text else []
    if len(tokens) > 1:
        raise ValueError(f"--stop={text!r} is {len(tokens)} tokens of this tokeniser: must be one")
    return tuple(tokens)


def encode(tokenizer: Tokenizer, texts: Sequence[str], vocabulary: int) -> list[list[int]]:
    """Each text as tokens; ValueError where the model has fewer tokens than its tokeniser."""
    rows = [tokenizer.encode(text) for text in texts]
    highest = max(max(row) for row in rows)
    if highest >= vocabulary:
        raise ValueError(
            f"token {highest} of a prompt: the model has {vocabulary}; "
            "the tokeniser is that of another model"
        )
    return rows


def continuation(tokenizer: Tokenizer, prompt: Sequence[int], new: Sequence[int]) -> str:
    """Text of the new tokens as it goes on from the prompt: a space between them is kept."""
    before, whole = tokenizer.decode(prompt), tokenizer.decode([*prompt, *new])
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(new)


class Stream:
    """A continuation in pieces that add up to it; half a character waits for its other half."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]):
        self._tokenizer, self._prompt, self._shown = tokenizer, prompt, ""

    def push(self, new: Sequence[int], last: bool) -> str:
        """What to show now that the new tokens are these, all of them; last: no more will come."""
        text = continuation(self._tokenizer, self._prompt, new)
        if not last:
            text = text.rstrip(UNFINISHED)
        piece, self._shown = text[len(self._shown) :], text
        return piece


def pad(rows: list[list[int]], multiple: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of tokens padded on the right, and their lengths; a multiple of `multiple` rows.

    Rows that only fill up are copies of the first.
    """
    rows = rows + [rows[0]] * (-len(rows) % multiple)
    lengths = np.asarray([len(row) for row in rows], np.int32)
    padded = np.zeros((len(rows), int(lengths.max())), np.int32)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded, lengths


def _first(bos: int | None, stop: tuple[int, ...], line_end: list[int]) -> list[int]:
    """What an empty text is: the token that begins one, else one that ends the text before."""
    return [bos] if bos is not None else list(stop[:1]) or line_end


def _package(name: str, path: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ValueError(
            f"{path} needs the package `{name}`, which is not installed: "
            "pip install 'tessera[text]'"
        ) from None


def _read(path: Path) -> dict[str, Any]:
    """The content of a JSON file; {} where there is none."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: must hold an object")
    return found
