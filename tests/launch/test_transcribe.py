"""`launch.transcribe` as a user meets it, with a tiny Whisper of bytes and random weights."""

from __future__ import annotations

import functools
import json
import shutil
import wave
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from launch import convert, transcribe
from launch.run import decode, errors, pretrained, sound, transcribing, transcript
from launch.run.logits import Sampling
from launch.run.reading import Inputs
from nn.layers.spectrogram import fit
from nn.pretrained import t5
from nn.pretrained import whisper as table
from tests.launch import published

GENERATION = published.WHISPER_GENERATION
WINDOW = transcribing.window_of(published.BYTES_WHISPER)
NEW = 12


def record(path: Path, samples: int, seed: int) -> None:
    """A WAV file of notes that change, so that no two windows sound alike."""
    rng = np.random.default_rng(seed)
    pitch = np.repeat(rng.uniform(100, 4000, samples // 800 + 1), 800)[:samples]
    audio = 0.5 * np.sin(2 * np.pi * np.cumsum(pitch) / 16_000) + 0.02 * rng.normal(size=samples)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes((audio * 20_000).astype("<i2").tobytes())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model`, published weights; `long.wav`, 2.5 windows; `short.wav`, a fifth of one."""
    made = tmp_path_factory.mktemp("whisper")
    published.write_bytes(made / "model", table, published.BYTES_WHISPER, np.float32)
    (made / "model" / pretrained.GENERATION).write_text(json.dumps(GENERATION), "utf-8")
    record(made / "long.wav", 5 * WINDOW // 2, 1)
    record(made / "short.wav", WINDOW // 5, 2)
    return made


def made_by(folder: Path, *arguments: str, model: str = "--pretrained={}/model") -> Any:
    """The files in the JSON that the command writes."""
    target = folder / "made.json"
    transcribe.main([model.format(folder), f"--length={NEW}", f"--json={target}", *arguments])
    return json.loads(target.read_text("utf-8"))["files"]


@functools.cache
def weights(folder: Path) -> tuple[Any, Any]:
    run, state = pretrained.load(str(folder / "model"), ["mesh.data=-1"])
    return run.rule.task.model, jax.device_get(state.params)


@functools.cache
def program(folder: Path, rules: transcript.Rules) -> Any:
    model, _ = weights(folder)
    how = Sampling(temperature=0, stop=(rules.end,))

    def write(params: Any, audio_1N: jax.Array, start_1P: jax.Array) -> Any:
        memory = model.apply({"params": params}, audio_1N, method="encode")
        key, length = jax.random.key_data(jax.random.key(0)), jnp.full((1,), start_1P.shape[1])
        inputs = Inputs(start_1P, length, key, jnp.zeros((1,), jnp.int32), {"memory": memory})
        return decode.run(decode.loop_of(model, NEW, how, rules), params, inputs)

    return jax.jit(write)


def by_hand(folder: Path, audio: np.ndarray, timestamps: bool, **asked: str) -> list[int]:
    """New tokens of one window by the loop itself, one row on one device."""
    rules = transcript.rules(GENERATION, timestamps)
    start = transcript.prompt(GENERATION, timestamps=timestamps, **asked)
    audio_1N = fit(jnp.asarray(audio[None]), WINDOW)
    view = program(folder, rules)(weights(folder)[1], audio_1N, jnp.asarray([start]))
    return view["tokens"][0, len(start) : int(view["ends"][0])].tolist()


def text_of(tokens: list[int]) -> list[int]:
    return [token for token in tokens if token < GENERATION["eos_token_id"]]


@pytest.mark.parametrize("mesh", [(), ("data=2", "tensor=2", "fsdp=2")])
def test_fixed_windows_are_those_of_the_loop(
    folder: Path, mesh: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    audio = sound.read(folder / "long.wav")
    sizes = [f"--config.mesh.{size}" for size in mesh]
    asked = {"language": "de", "task": "translate"}
    flags = [f"--{key}={value}" for key, value in asked.items()]
    (made,) = made_by(folder, f"--audio={folder / 'long.wav'}", *flags, *sizes)
    places = range(0, len(audio), WINDOW)
    expected = [text_of(by_hand(folder, audio[i : i + WINDOW], False, **asked)) for i in places]
    assert [segment["tokens"] for segment in made["segments"]] == expected
    assert len({tuple(tokens) for tokens in expected}) == 3
    assert [segment["start"] for segment in made["segments"]] == [0, 0.48, 0.96]
    assert made["segments"][-1]["end"] == 1.2
    said = [bytes(tokens).decode() for tokens in expected]
    assert capsys.readouterr().out == "".join(f"{line.strip()}\n" for line in said)
    assert made["text"] == "".join(said).strip()


def test_with_timestamps_a_window_begins_where_a_segment_ended(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [folder / "long.wav", folder / "short.wav"]
    made = made_by(folder, *(f"--audio={file}" for file in files), "--timestamps")
    lines = []
    for file, found in zip(files, made, strict=True):
        audio, place, expected = sound.read(file), 0, []
        while place < len(audio):
            window = audio[place : place + WINDOW]
            tokens = by_hand(folder, window, True)
            pieces, further = transcribing.cut(
                tokens, transcript.rules(GENERATION, True), len(window)
            )
            expected += [(place + x.start, place + x.end, x.tokens) for x in pieces]
            place += further
        got = [(x["start"] * 16_000, x["end"] * 16_000, x["tokens"]) for x in found["segments"]]
        assert got == expected
        for start, end, tokens in expected:
            times = f"[00:0{start / 16_000:.2f} -> 00:0{end / 16_000:.2f}]"
            lines.append(f"{file}: {times} {bytes(tokens).decode().strip()}")
    assert sorted(capsys.readouterr().out.splitlines()) == sorted(line.rstrip() for line in lines)
