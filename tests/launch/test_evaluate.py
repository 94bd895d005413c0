"""`launch.evaluate` on files of texts, as a user runs it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from launch import convert, evaluate
from launch.run import errors, restore, sampling, text
from launch.run.logits import Sampling

TEXT = "def main():\n    return 'é' + str(3)\n" * 4  # 132 bytes in a context of 64


def measured(workdir: Path, task: str, data: Path, *flags: str) -> tuple[dict[str, Any], list[Any]]:
    """The result and the items that a task writes."""
    out, items = data.with_suffix(".result"), data.with_suffix(".items")
    files = [f"--data={data}", f"--json={out}", f"--items={items}"]
    assert evaluate.main([f"--workdir={workdir}", f"--task={task}", *files, *flags]) == errors.DONE
    lines = items.read_text("utf-8").splitlines()
    return json.loads(out.read_text("utf-8")), [json.loads(line) for line in lines]


def lines(path: Path, *items: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in items), "utf-8")
    return path


def test_perplexity_is_the_same_on_every_mesh(short_run: Path, tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text(TEXT, "utf-8")
    result, items = measured(short_run, "perplexity", book)
    assert (result["context"], result["stride"], result["step"]) == (64, 32, 2)
    assert result["bytes"] == result["tokens"] == len(TEXT.encode())
    assert result["bits_per_byte"] == pytest.approx(result["loss"] / math.log(2), rel=1e-9)
    assert result["perplexity"] == pytest.approx(math.exp(result["loss"]), rel=1e-9)
    assert items[0]["log_likelihood"] == pytest.approx(-result["loss"] * result["tokens"])
    for flags in (["--config.mesh.tensor=8"], ["--config.mesh.fsdp=2", "--batch=3"]):
        other, _ = measured(short_run, "perplexity", book, *flags)
        assert other["loss"] == pytest.approx(result["loss"], rel=1e-5)
    far, _ = measured(short_run, "perplexity", book, "--stride=64")
    assert far["loss"] != result["loss"]
    assert far["stride"] == 64


def test_match_is_what_generate_gives(short_run: Path, tmp_path: Path) -> None:
    run = restore.run_of(str(short_run))
    state, _ = restore.state_of(run, str(short_run))
    contexts = ["def f(", "", "import numpy"]
    trained = sampling.of_run(run, run.rule.weights(state), text.Bytes(256))
    prompts = [trained.tokenizer.encode(context) for context in contexts]
    how = Sampling(temperature=0.0)
    made = sampling.Generation(trained, prompts, 3, how).complete(0).texts
    assert all(len(new.encode()) == 3 for new in made)  # tokens that are text
    pairs = [*zip(contexts, made, strict=True), ("def f(", made[0][:-1] + "~")]
    data = lines(tmp_path / "m.jsonl", *({"context": c, "target": t} for c, t in pairs))
    result, items = measured(short_run, "match", data)
    assert [item["match"] for item in items] == [True, True, True, False]
    assert (result["match"], result["items"]) == (0.75, 4)


def test_choice(short_run: Path, tmp_path: Path) -> None:
    long = "x = 1\n" * 40  # loses its beginning
    choices = ["return", "~~~~~~", "\u00e9"]
    asked = [{"context": c, "choices": choices, "answer": 0} for c in ("", "def f(): ", long)]
    data = lines(tmp_path / "c.jsonl", *asked)
    result, items = measured(short_run, "choice", data)
    other, again = measured(short_run, "choice", data, "--config.mesh.tensor=4")
    assert result == other
    for item, twin in zip(items, again, strict=True):
        assert item["log_likelihoods"] == pytest.approx(twin["log_likelihoods"], rel=1e-5)
        assert item["pick"] == item["log_likelihoods"].index(max(item["log_likelihoods"]))
    match = lines(tmp_path / "m.jsonl", *({"context": long, "target": c} for c in choices))
    _, alone = measured(short_run, "match", match)
    found = [item["log_likelihood"] for item in alone]
    assert found == pytest.approx(items[2]["log_likelihoods"], rel=1e-5)


def test_published_weights_and_their_tokeniser(short_run: Path, tmp_path: Path) -> None:
    """Exported, and read with a tokeniser that makes ASCII its own bytes: the same numbers."""
    tokenizers = pytest.importorskip("tokenizers")
    published = tmp_path / "published"
    target = [f"--to={published}", "--config.model.dropout=0"]  # which such files do not have
    assert convert.main(["export", f"--from={short_run}", *target]) == errors.DONE
    before = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocabulary = {before.pre_tokenize_str(chr(b))[0][0]: b for b in range(128)}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    made.pre_tokenizer, made.decoder = before, tokenizers.decoders.ByteLevel()
    made.save(str(published / "tokenizer.json"))
    book = tmp_path / "book.txt"
    book.write_text(TEXT.replace("é", "e"), "utf-8")
    result, _ = measured(short_run, "perplexity", book)
    out = tmp_path / "published.json"
    flags = ["--task=perplexity", f"--data={book}", "--config.mesh.tensor=2", f"--json={out}"]
    assert evaluate.main([f"--pretrained={published}", *flags]) == errors.DONE
    found = json.loads(out.read_text())
    assert found["tokens"] == result["tokens"] == result["bytes"]
    assert found["loss"] == pytest.approx(result["loss"], rel=1e-5)


def test_word_errors_need_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = lines(tmp_path / "w.jsonl", {"reference": "one two", "hypothesis": "One, too!"})
    evaluate.main(["--task=wer", f"--data={data}", f"--json={tmp_path / 'w.json'}"])
    assert json.loads((tmp_path / "w.json").read_text())["wer"] == 0.5
    assert "0.5000" in capsys.readouterr().out


BAD = {
    "a task without data": (["--task=match"], "--task=match needs --data=FILE"),
    "data without a task": (["--data=x"], "--data goes with --task=perplexity | choice"),
    "a stride without windows": (["--task=match", "--data={d}", "--stride=2"], "--task=perplexity"),
    "a long stride": (["--task=perplexity", "--data={d}", "--stride=65"], "nearest: 64"),
    "no rows": (["--task=match", "--data={d}", "--batch=0"], "--batch=0: must be at least 1"),
    "a split too": (["--task=match", "--data={d}", "--split=test"], "drop it or --task"),
    "a bad line": (["--task=choice", "--data={d}"], "d.jsonl:1: no 'context'"),
    "no texts": (["--task=perplexity", "--data={d}", "--workdir=none"], "no run there"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(
    name: str, short_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = lines(tmp_path / "d.jsonl", {"text": "a"})
    if name not in ("a long stride", "a bad line", "no texts"):
        lines(data, {"context": "a", "target": "b"})
    flags, message = BAD[name]
    with pytest.raises(SystemExit) as end:
        evaluate.main([f"--workdir={short_run}", *(flag.format(d=data) for flag in flags)])
    assert end.value.code == errors.BAD_INPUT
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--split=test"], "give one of --workdir and --pretrained"),
        (["--pretrained=x"], "--pretrained=x has no data of its own; add --task"),
        (["--pretrained=x", "--workdir=y", "--task=match"], "give one of"),
        (["--pretrained=x", "--step=3", "--task=match"], "--step=3: published weights have no"),
    ],
)
def test_a_model_is_needed(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = lines(tmp_path / "m.jsonl", {"context": "a", "target": "b"})
    with pytest.raises(SystemExit):
        evaluate.main([*flags, *([f"--data={data}"] if "--task=match" in flags else [])])
    assert message in capsys.readouterr().err
