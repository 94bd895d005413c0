"""`launch.generate` with models that answer a source text, and those that cannot be asked by it."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch import generate
from launch.run import encoding, errors, pretrained
from nn.families import whisper
from nn.pretrained import t5
from tests.launch import published

SOURCES = ("ab", "a longer source")
NEW = 5


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "t5"
    published.write_bytes(folder, t5, published.BYTES_T5, np.float32)
    return folder


def by_the_full_pass(directory: Path) -> list[list[int]]:
    """The likeliest tokens, each by a whole pass over source and answer."""
    run, state = pretrained.load(str(directory))
    apply, params = jax.jit(run.rule.task.model.apply), jax.device_get(state.params)
    answers = []
    for source in SOURCES:
        row, tokens = [published.BYTES_T5.start_token], jnp.asarray([list(source.encode())])
        for _ in range(NEW):
            logits = apply({"params": params}, tokens, jnp.asarray([row]))
            row.append(int(logits[0, -1].argmax()))
        answers.append(row[1:])
    return answers


@pytest.mark.parametrize("mesh", [(), ("data=2", "tensor=2", "fsdp=2")])
def test_answers_are_those_of_the_full_pass(
    directory: Path, mesh: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = [f"--prompt={source}" for source in SOURCES]
    sizes = [f"--config.mesh.{size}" for size in mesh]
    asked = [*prompts, "--greedy", f"--length={NEW}", f"--json={tmp_path / 'made.json'}"]
    generate.main([f"--pretrained={directory}", *asked, *sizes])
    made = json.loads((tmp_path / "made.json").read_text("utf-8"))["completions"]
    assert [row["tokens"] for row in made] == by_the_full_pass(directory)
    assert len({token for row in made for token in row["tokens"]}) > 2
    assert capsys.readouterr().out.startswith("ab\n")


def test_what_does_not_go_together_is_refused(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        generate.main([f"--pretrained={directory}", "--prompt=a", f"--draft={directory}"])
    assert end.value.code == errors.BAD_INPUT
    assert "--draft is for decoders" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"reads no text: .*launch.transcribe"):
        encoding.reads_sources(whisper.Model(whisper.tiny()))
