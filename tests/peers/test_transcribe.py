"""launch.transcribe beside transformers: languages, the text of every window, and segments."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.models.whisper.generation_whisper import WhisperGenerationMixin

from launch import transcribe
from launch.run import transcribing
from launch.run.transcript import Rules
from nn.layers.spectrogram import HOP, SAMPLE_RATE
from tests.launch.published import WHISPER_GENERATION
from tests.peers.packages import tensor

SECONDS = 1  # that the model hears
NEW = 12  # tokens
LANGUAGES = {f"<|{name}|>": 290 + i for i, name in enumerate(["en", "de", "fr", "es", "it", "nl"])}
VOCABULARY = 320
# Pairs of times would make `generate` go on behind them, even where none are asked for.
SUPPRESSED = [*WHISPER_GENERATION["suppress_tokens"], *range(263, VOCABULARY)]
GENERATION = WHISPER_GENERATION | {"lang_to_id": LANGUAGES, "suppress_tokens": SUPPRESSED}
END, ZERO = 256, GENERATION["no_timestamps_token_id"] + 1
RULES = Rules(end=END, no_timestamps=ZERO - 1)


def model(seed: int) -> transformers.WhisperForConditionalGeneration:
    config = transformers.WhisperConfig(
        vocab_size=VOCABULARY,
        num_mel_bins=8,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_layers=2,
        decoder_attention_heads=3,
        decoder_ffn_dim=20,
        d_model=12,
        max_source_positions=SECONDS * SAMPLE_RATE // transcribing.STEP,
        max_target_positions=24,
        pad_token_id=END,
        bos_token_id=END,
        eos_token_id=END,
        decoder_start_token_id=GENERATION["decoder_start_token_id"],
        tie_word_embeddings=False,
    )
    made = transformers.WhisperForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    for key, value in GENERATION.items():
        setattr(made.generation_config, key, value)
    made.generation_config.is_multilingual = True
    return made.eval()


def record(path: Path, seconds: float, seed: int) -> np.ndarray:
    """A WAV file, and its samples."""
    rng = np.random.default_rng(seed)
    count = int(seconds * SAMPLE_RATE)
    pitch = np.repeat(rng.uniform(100, 4000, count // 800 + 1), 800)[:count]
    audio = 0.5 * np.sin(2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE)
    whole = ((audio + 0.02 * rng.normal(size=count)) * 20_000).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        file.writeframes(whole.tobytes())
    return whole.astype(np.float32) / 2**15


def test_every_window_says_what_transformers_says(tmp_path: Path, seed: int) -> None:
    found = {language for i in range(4) for language in compare(tmp_path / str(i), seed + 10 * i)}
    assert len(found) > 1


def compare(folder: Path, seed: int) -> list[str]:
    """Three files by one model; returns their languages."""
    theirs = model(seed)
    theirs.save_pretrained(folder / "model")
    hear = transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=SECONDS)
    files = {folder / f"{i}.wav": 0.4 + 1.3 * i for i in range(3)}
    sounds = [record(path, seconds, seed + i) for i, (path, seconds) in enumerate(files.items())]
    target = folder / "made.json"
    flags = [f"--audio={path}" for path in files]
    directory = f"--pretrained={folder / 'model'}"
    transcribe.main([directory, f"--length={NEW}", f"--json={target}", *flags])
    names = {token: name.strip("<|>") for name, token in LANGUAGES.items()}
    made = json.loads(target.read_text("utf-8"))["files"]
    for audio, ours in zip(sounds, made, strict=True):
        windows = [audio[i : i + SAMPLE_RATE] for i in range(0, len(audio), SAMPLE_RATE)]
        heard = tensor(hear(windows, sampling_rate=SAMPLE_RATE, return_tensors="np").input_features)
        with torch.no_grad():
            language = names[int(theirs.detect_language(heard[:1])[0])]
            asked: dict[str, Any] = dict(language=language, task="transcribe", do_sample=False)
            rows = theirs.generate(heard, max_new_tokens=NEW, **asked).numpy()
        assert ours["language"] == language
        expected = [[int(x) for x in row if x < END] for row in rows]
        found = [segment["tokens"] for segment in ours["segments"]]
        assert found == [tokens for tokens in expected if tokens]
    return [ours["language"] for ours in made]


def tokens_of_a_window(rng: np.random.Generator) -> list[int]:
    """Times in pairs with text between them, cut off somewhere."""
    made, time = [], 0
    for _ in range(rng.integers(1, 5)):
        start = time + int(rng.integers(0, 3))
        time = start + int(rng.integers(1, 8))
        text = rng.integers(0, END, rng.integers(1, 4)).tolist()
        made += [ZERO + start, *text, ZERO + time]
    return made[: rng.integers(3, len(made) + 1)]


@pytest.mark.parametrize("number", range(40))
def test_segments_of_a_window_are_those_of_transformers(number: int, seed: int) -> None:
    tokens = tokens_of_a_window(np.random.default_rng(seed + number))
    frames = SECONDS * SAMPLE_RATE // HOP
    theirs, offset = WhisperGenerationMixin._retrieve_segment(
        seek_sequence=torch.tensor(tokens),
        seek_outputs=[None],
        time_offset=torch.zeros(1, dtype=torch.float64),
        timestamp_begin=ZERO,
        seek_num_frames=torch.tensor([frames]),
        time_precision=transcribing.STEP / SAMPLE_RATE,
        time_precision_features=HOP / SAMPLE_RATE,
        input_stride=transcribing.STEP // HOP,
        prev_idx=0,
        idx=0,
        return_token_timestamps=False,
        decoder_input_ids=torch.zeros(1, 0),
    )
    ours, further = transcribing.cut([*tokens, END], RULES, SECONDS * SAMPLE_RATE)
    assert further == int(offset) * HOP
    assert [x.tokens for x in ours] == [
        [y for y in x["tokens"].tolist() if y < END] for x in theirs
    ]
    if len(theirs) > 1:  # a window that is one segment starts at 0 there, here where it says
        for x, y in zip(ours, theirs, strict=True):
            assert x.seconds == pytest.approx((float(y["start"]), float(y["end"])))
