"""Tokenisers: bytes, and files that the packages `tokenizers` and `sentencepiece` write."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from launch.run import text

CORPUS = ["the cat sat on the mat", "naïve café, naïve mat", "on the cat, on the café"] * 20


def write(folder: Path, **files: Any) -> None:
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")


@pytest.fixture(scope="module")
def bpe() -> tokenizers.Tokenizer:
    """Byte-level pairs, as GPT-2's, with a token in front of each text, as Llama 3 has it."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>", "<end>"]
    made.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet),
    )
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    made.enable_truncation(3)  # what a file may have been saved with
    made.enable_padding(length=50)
    return made


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    prefix = tmp_path_factory.mktemp("pieces") / "tokenizer"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_prefix=str(prefix), vocab_size=21, minloglevel=2
    )
    return prefix.with_suffix(".model").read_bytes()


def test_bytes() -> None:
    tokenizer = text.Bytes(256)
    assert tokenizer.encode("é\n") == [0xC3, 0xA9, 10]
    assert tokenizer.encode("") == [10]
    assert tokenizer.decode([0xC3, 0xA9, 300, 0xFF, 65]) == "é\N{REPLACEMENT CHARACTER}A"
    assert text.stop_tokens(tokenizer, b"\xff\n") == (255, 10)
    with pytest.raises(ValueError, match="model.vocab_size=255: text needs the 256 bytes"):
        text.Bytes(255)


def test_a_tokenizer_json(bpe: tokenizers.Tokenizer, tmp_path: Path) -> None:
    bpe.save(str(tmp_path / "tokenizer.json"))
    tokenizer = text.load(tmp_path)
    tokens = tokenizer.encode("the café on the mat")
    assert tokens[0] == 0 and len(tokens) > 4
    assert tokenizer.decode(tokens) == "the café on the mat"
    assert tokenizer.plain("the café on the mat") == tokens[1:]
    assert tokenizer.encode("") == [0]
    assert tokenizer.stop == ()
    assert text.stop_tokens(tokenizer, b"<end>") == (2,)
    assert text.stop_tokens(tokenizer, b"") == ()
    with pytest.raises(ValueError, match="tokens of this tokeniser: must be one"):
        text.stop_tokens(tokenizer, b"xyz")
    assert text.encode(tokenizer, ["a", "the"], 300)[0][0] == 0
    with pytest.raises(ValueError, match="tokeniser is that of another model"):
        text.encode(tokenizer, ["a", "the"], 100)


@pytest.mark.parametrize(
    ("files", "stop"),
    [
        ({"config": {"eos_token_id": 1}}, (1,)),
        ({"config": {"text_config": {"eos_token_id": 2}}}, (2,)),
        ({"config": {"eos_token_id": 1}, "generation_config": {"eos_token_id": [2, 1]}}, (2, 1)),
        ({"config": {"eos_token_id": None}, "tokenizer_config": {"eos_token": "</s>"}}, (1,)),
        ({"tokenizer_config": {"eos_token": {"content": "<end>"}}}, (2,)),
        ({"tokenizer_config": {"eos_token": "<other>"}}, ()),
    ],
)
def test_what_ends_a_text(
    bpe: tokenizers.Tokenizer, tmp_path: Path, files: dict[str, Any], stop: tuple[int, ...]
) -> None:
    bpe.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, **files)
    assert text.load(tmp_path).stop == stop


def test_a_model_of_sentencepiece(pieces: bytes, tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(pieces)
    tokenizer = text.load(tmp_path)
    tokens = tokenizer.encode("the cat")
    assert (tokens[0], tokens[1:]) == (1, tokenizer.plain("the cat"))  # 1 begins, 2 ends
    assert tokenizer.decode(tokens) == "the cat"
    assert tokenizer.stop == (2,)
    assert tokenizer.encode("") == [1]
    write(tmp_path, tokenizer_config={"add_bos_token": False, "add_eos_token": True})
    other = text.load(tmp_path)
    assert other.encode("the cat") == [*tokens[1:], 2]
    write(tmp_path, tokenizer_config={"eos_token": "<unk>", "add_bos_token": False})
    assert text.load(tmp_path).stop == (0,)
    # A space between prompt and continuation is kept.
    new = tokenizer.plain("sat on")
    assert tokenizer.decode(new) == "sat on"
    assert text.continuation(tokenizer, tokens, new) == " sat on"


def test_a_missing_package_is_named_with_its_extra(
    bpe: tokenizers.Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bpe.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "pieces").mkdir()
    (tmp_path / "pieces" / "tokenizer.model").write_bytes(b"")
    for package, folder in (("tokenizers", tmp_path), ("sentencepiece", tmp_path / "pieces")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ValueError, match=rf"`{package}`, which is not .*'tessera\[text\]'"):
            text.load(folder)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="looked for tokenizer.json, tokenizer.model"):
        text.load(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="tokenizer.model: not a model of `sentencepiece`"):
        text.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="tokenizer.json: not a tokeniser of `tokenizers`"):
        text.load(tmp_path)
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(ValueError, match="config.json: not JSON"):
        text.special_tokens(tmp_path, lambda name: None)


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_pieces_of_a_stream_are_whole_characters_and_add_up(
    kind: str, bpe: tokenizers.Tokenizer, tmp_path: Path
) -> None:
    bpe.save(str(tmp_path / "tokenizer.json"))
    tokenizer = text.Bytes(256) if kind == "bytes" else text.load(tmp_path)
    line = " naïve ☃ 🂡 on"
    new = tokenizer.plain(line)
    stream = text.Stream(tokenizer, tokenizer.encode("the café"))
    shown = [stream.push(new[:i], last=False) for i in range(1, len(new) + 1)]
    assert "".join(shown) == line
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(shown)
    assert "" in shown and len(shown) > 8  # halves waited
    # What never becomes a character is shown at the end.
    stream = text.Stream(tokenizer, [])
    half = tokenizer.plain("on ☃")[:-1]
    assert stream.push(half, last=False) == "on "
    assert stream.push(half, last=True) == "\N{REPLACEMENT CHARACTER}"


def test_rows_are_padded_and_filled_up() -> None:
    padded, lengths = text.pad([[1, 2, 3], [4]], 4)
    assert padded.tolist() == [[1, 2, 3], [4, 0, 0], [1, 2, 3], [1, 2, 3]]
    assert lengths.tolist() == [3, 1, 3, 3]
