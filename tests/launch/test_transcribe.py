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
from launch.run import decode, errors, pretrained, sound, text, transcribing, transcript
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
    """A WAV file of notes, silent for a while in the middle, so that no two windows are alike."""
    rng = np.random.default_rng(seed)
    pitch = np.repeat(rng.uniform(100, 4000, samples // 800 + 1), 800)[:samples]
    audio = 0.5 * np.sin(2 * np.pi * np.cumsum(pitch) / 16_000) + 0.02 * rng.normal(size=samples)
    audio[2 * samples // 5 : 3 * samples // 5] = 0.0
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes((audio * 20_000).astype("<i2").tobytes())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model`, published weights; `long.wav`, 2.5 windows; `short.wav`, a fifth of one."""
    made = tmp_path_factory.mktemp("whisper")
    published.write_bytes(made / "model", table, published.BYTES_WHISPER, np.float32, scale=0.4)
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
def program(folder: Path, rules: transcript.Rules, beams: int) -> Any:
    model, _ = weights(folder)
    how = Sampling(temperature=0, stop=(rules.end,), beams=beams)

    def write(params: Any, audio_1N: jax.Array, start_1P: jax.Array) -> Any:
        memory = model.apply({"params": params}, audio_1N, method="encode")
        key, length = jax.random.key_data(jax.random.key(0)), jnp.full((1,), start_1P.shape[1])
        inputs = Inputs(start_1P, length, key, jnp.zeros((1,), jnp.int32), {"memory": memory})
        return decode.run(decode.loop_of(model, NEW, how, rules), params, inputs)

    return jax.jit(write)


def by_hand(
    folder: Path, audio: np.ndarray, timestamps: bool, beams: int = 1, **asked: str
) -> list[int]:
    """New tokens of one window by the loop itself, one row on one device."""
    rules = transcript.rules(GENERATION, timestamps)
    start = transcript.prompt(GENERATION, timestamps=timestamps, **asked)
    audio_1N = fit(jnp.asarray(audio[None]), WINDOW)
    view = program(folder, rules, beams)(weights(folder)[1], audio_1N, jnp.asarray([start]))
    return view["tokens"][0, len(start) : int(view["ends"][0])].tolist()


def text_of(tokens: list[int]) -> list[int]:
    return [token for token in tokens if token < GENERATION["eos_token_id"]]


def test_fixed_windows_are_those_of_the_loop(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audio = sound.read(folder / "long.wav")
    sizes = [f"--config.mesh.{axis}=2" for axis in ("data", "tensor", "fsdp")]
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


@pytest.mark.parametrize("beams", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_with_timestamps_a_window_begins_where_a_segment_ended(
    folder: Path, beams: int, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [folder / "long.wav", folder / "short.wav"]
    made = made_by(
        folder,
        *(f"--audio={file}" for file in files),
        "--language=en",
        "--timestamps",
        f"--num-beams={beams}",
    )
    assert len(made[0]["segments"]) > 2
    lines = []
    for file, found in zip(files, made, strict=True):
        audio, place, expected = sound.read(file), 0, []
        while place < len(audio):
            window = audio[place : place + WINDOW]
            tokens = by_hand(folder, window, True, beams)
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


def test_a_language_that_is_not_given_is_the_likeliest_of_the_first_window(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [folder / "long.wav", folder / "short.wav"]
    made = made_by(folder, *(f"--audio={file}" for file in files))
    model, params = weights(folder)
    likeliest = []
    for file in files:
        audio_1N = fit(jnp.asarray(sound.read(file)[None, :WINDOW]), WINDOW)
        start = jnp.asarray([[GENERATION["decoder_start_token_id"]]])
        logits_11V = model.apply({"params": params}, audio_1N, start)
        of = {name: logits_11V[0, 0, x] for name, x in transcript.languages(GENERATION).items()}
        likeliest.append(max(of, key=of.__getitem__))
    assert [file["language"] for file in made] == likeliest == ["de", "de"]
    for file, found, language in zip(files, made, likeliest, strict=True):
        first = by_hand(folder, sound.read(file)[:WINDOW], False, language=language)
        assert found["segments"][0]["tokens"] == text_of(first)
    said = [f"{file}: language {x!r}" for file, x in zip(files, likeliest, strict=True)]
    assert capsys.readouterr().err.splitlines() == said


def test_generation_config_goes_with_an_import_and_an_export(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, work, target = (tmp_path / name for name in ("source", "work", "target"))
    shutil.copytree(folder / "model", source)
    small = ("--config.optimizer.name=sgd", "--config.data.sequence_length=8")
    assert convert.main(["import", f"--from={source}", f"--to={work}", *small]) == 0
    shutil.rmtree(source)
    assert convert.main(["export", f"--from={work}", f"--to={target}"]) == 0
    assert json.loads((target / pretrained.GENERATION).read_text("utf-8")) == GENERATION
    flags = (f"--audio={folder / 'short.wav'}", "--language=de", "--task=translate")
    (made,) = made_by(folder, *flags, model=f"--workdir={work}")
    expected = by_hand(
        folder, sound.read(folder / "short.wav"), False, language="de", task="translate"
    )
    assert made["segments"][0]["tokens"] == text_of(expected)
    assert "suppressed" not in capsys.readouterr().err


def named_tokenizer() -> tokenizers.Tokenizer:
    """Bytes, and the special tokens of `GENERATION` by their names."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(models.BPE({x: i for i, x in enumerate(alphabet)}, []))
    made.decoder = decoders.ByteLevel()
    names = ["endoftext", "startoftranscript", "en", "de", "translate", "transcribe"]
    made.add_special_tokens([f"<|{name}|>" for name in [*names, "notimestamps"]])
    return made


def test_without_generation_config_the_tokeniser_names_the_special_tokens(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(folder / "model", model)
    (model / pretrained.GENERATION).unlink()
    tokenizer = named_tokenizer()
    tokenizer.save(str(model / "tokenizer.json"))
    short = f"--audio={folder / 'short.wav'}"
    files = made_by(folder, short, short, "--language=de", model=f"--pretrained={model}")
    assert capsys.readouterr().err.count("no generation_config.json: no token is suppressed") == 1
    found = transcript.by_name(text.load(model).added(), english=False)  # type: ignore[attr-defined]
    named = {key: value for key, value in GENERATION.items() if "suppress" not in key}
    assert found == named
    for made in files:
        (segment,) = made["segments"]
        assert set(segment["tokens"]) & set(GENERATION["suppress_tokens"])
        assert segment["text"] == tokenizer.decode(segment["tokens"])


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that the command says before it ends with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        transcribe.main(list(arguments))
    assert end.value.code == errors.BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_bad_input_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, audio = f"--pretrained={folder / 'model'}", f"--audio={folder / 'short.wav'}"
    assert "--audio" in refused(capsys, model)
    assert "no such file" in refused(capsys, model, f"--audio={tmp_path / 'none.wav'}")
    assert "not a WAV" in refused(capsys, model, f"--audio={folder / 'model/config.json'}")
    assert "nearest: 'de'" in refused(capsys, model, audio, "--language=dee")
    assert "nearest: 'translate'" in refused(capsys, model, audio, "--task=translat")
    assert "nearest: --length=20" in refused(capsys, model, audio, "--length=21")
    assert "--batch-size=0" in refused(capsys, model, audio, "--batch-size=0")
    assert "one of --workdir and" in refused(capsys, audio)
    published.write_bytes(tmp_path / "t5", t5, published.BYTES_T5, np.float32)
    line = refused(capsys, f"--pretrained={tmp_path / 't5'}", audio)
    assert "model.family='seq2seq_transformer' hears no sound; nearest: 'whisper'" in line
    bare = tmp_path / "bare"
    shutil.copytree(folder / "model", bare)
    more = GENERATION | {"eos_token_id": 257}
    (bare / pretrained.GENERATION).write_text(json.dumps(more), "utf-8")
    assert "--tokenizer=DIR" in refused(capsys, f"--pretrained={bare}", audio)
    (bare / pretrained.GENERATION).unlink()
    line = refused(capsys, f"--pretrained={bare}", audio)
    assert "no token '<|startoftranscript|>' in the tokeniser" in line
