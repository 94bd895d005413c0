"""WAV files of every kind that is read, and other sampling rates."""

from __future__ import annotations

import struct
import wave
from pathlib import Path

import numpy as np
import pytest

from launch.run import sound
from nn.layers.spectrogram import SAMPLE_RATE


def write(path: Path, raw: bytes, width: int, channels: int = 1, rate: int = SAMPLE_RATE) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(raw)


def whole(audio: np.ndarray, width: int) -> bytes:
    """Little-endian samples; of one byte from 0 on."""
    scaled = np.round(audio * (2 ** (8 * width - 1) - 1)).astype(np.int64)
    if width == 1:
        return (scaled + 128).astype(np.uint8).tobytes()
    return scaled.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :width].tobytes()


@pytest.mark.parametrize("width", sound.WIDTHS)
def test_samples_of_every_width(width: int, tmp_path: Path) -> None:
    audio = np.asarray([0.0, 0.5, -0.5, 1.0, -1.0, 0.25, -0.125])
    write(tmp_path / "a.wav", whole(audio, width), width)
    found = sound.read(tmp_path / "a.wav")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, audio, atol=max(1.5 * 2.0 ** (1 - 8 * width), 1e-7))


def test_channels_are_averaged(tmp_path: Path) -> None:
    audio = np.asarray([[0.5, 0.25, 0.0], [0.0, -0.5, -0.25]])
    write(tmp_path / "a.wav", whole(audio.ravel(), 3), 3, channels=3)
    np.testing.assert_allclose(sound.read(tmp_path / "a.wav"), [0.25, -0.25], atol=1e-6)


def test_the_long_form_of_the_header_is_read(tmp_path: Path) -> None:
    raw = whole(np.asarray([0.5, -0.25]), 3)
    rest = struct.pack("<HHI", 22, 24, 4) + struct.pack("<H", sound.PCM) + bytes(14)
    form = struct.pack("<HHIIHH", sound.EXTENSIBLE, 1, SAMPLE_RATE, 3 * SAMPLE_RATE, 3, 24) + rest
    body = b"WAVE" + b"fmt " + struct.pack("<I", len(form)) + form
    body += b"data" + struct.pack("<I", len(raw)) + raw
    (tmp_path / "a.wav").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    np.testing.assert_allclose(sound.read(tmp_path / "a.wav"), [0.5, -0.25], atol=1e-6)


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 48000, 12345])
def test_a_tone_keeps_its_frequency_and_place(rate: int) -> None:
    pitch, time = 1234.5, np.arange(rate // 2) / rate
    found = sound.resample(np.sin(2 * np.pi * pitch * time).astype(np.float32), rate)
    assert len(found) == SAMPLE_RATE // 2
    expected = np.sin(2 * np.pi * pitch * np.arange(len(found)) / SAMPLE_RATE)
    inner = slice(SAMPLE_RATE // 100, -SAMPLE_RATE // 100)  # at the ends the tone is cut off
    np.testing.assert_allclose(found[inner], expected[inner], atol=1e-4)


def test_what_16_khz_cannot_hold_is_gone() -> None:
    time = np.arange(24_000) / 48_000
    found = sound.resample(np.sin(2 * np.pi * 9000 * time).astype(np.float32), 48_000)
    assert np.abs(found[200:-200]).max() < 1e-4  # else it would sound at 7000 Hz


def test_what_is_no_sound_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.wav"
    with pytest.raises(FileNotFoundError, match=r"--audio=.*a\.wav: there is no such file"):
        sound.read(file)
    file.write_bytes(b"ID3 and so on, not a wave at all")
    with pytest.raises(ValueError, match=r"not a WAV file of PCM samples .*nearest: ffmpeg"):
        sound.read(file)
    write(file, b"", 2)
    with pytest.raises(ValueError, match="holds no sound"):
        sound.read(file)
    good = file.read_bytes()
    file.write_bytes(good[:20])
    with pytest.raises(ValueError, match=r"not a WAV file of PCM samples \(it is cut short\)"):
        sound.read(file)
    at = good.index(b"fmt ") + 8
    file.write_bytes(good[:at] + struct.pack("<H", 3) + good[at + 2 :])
    with pytest.raises(ValueError, match=r"\(unknown format: 3\)"):
        sound.read(file)
