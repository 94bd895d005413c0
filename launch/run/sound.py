"""Sound from WAV files, as models of speech hear it: one channel, 16 kHz, -1..1.

Legend: N samples, M those of the result, C channels, K taps of the filter.
"""

from __future__ import annotations

import io
import math
import struct
import wave
from pathlib import Path

import numpy as np

from nn.layers.spectrogram import SAMPLE_RATE

PCM, EXTENSIBLE = 1, 0xFFFE  # format tags; the second says further on what it is
WIDTHS = (1, 2, 3, 4)  # bytes of a sample
CROSSINGS = 32  # zeros of the filter on each side: a band of 1/32 is between passed and stopped
KAISER = 9.0  # of its window: what is stopped is 90 dB down
CONVERT = "ffmpeg -i FILE -c:a pcm_s16le NEW.wav"


def read(path: str | Path) -> np.ndarray:
    """The sound of a WAV file of 8, 16, 24 or 32 bits, (N,) float32; channels are averaged.

    Raises:
      FileNotFoundError: no file there.
      ValueError: no WAV, none of whole numbers, or one without sound.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"--audio={path}: there is no such file")
    try:
        with wave.open(io.BytesIO(_plain(Path(path).read_bytes()))) as file:
            channels, width, rate = file.getparams()[:3]
            raw = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        why = str(error) or "it is cut short"
        raise ValueError(
            f"--audio={path}: not a WAV file of PCM samples ({why}); nearest: {CONVERT}"
        ) from None
    if width not in WIDTHS or rate < 1:
        raise ValueError(
            f"--audio={path}: samples of {8 * width} bits, {rate} a second, are not read; "
            f"nearest: {CONVERT}"
        )
    audio_NC = samples(raw[: len(raw) - len(raw) % (channels * width)], width, channels)
    if not len(audio_NC):
        raise ValueError(f"--audio={path}: holds no sound")
    return resample(audio_NC.mean(axis=1, dtype=np.float32), rate)


def _plain(content: bytes) -> bytes:
    """A file whose header says PCM where it says so in the long form, which `wave` does not read
    in every version of Python."""
    at = content.find(b"fmt ", 12)
    if content[:4] != b"RIFF" or at < 0 or len(content) < at + 34:
        return content
    (tag,), (subtype,) = (struct.unpack_from("<H", content, at + place) for place in (8, 32))
    if (tag, subtype) != (EXTENSIBLE, PCM):
        return content
    return content[: at + 8] + struct.pack("<H", PCM) + content[at + 10 :]


def samples(raw: bytes, width: int, channels: int) -> np.ndarray:
    """(N, C) float32 in -1..1 of little-endian samples of `width` bytes; one byte is unsigned."""
    given = np.frombuffer(raw, np.uint8).reshape(-1, width)
    wide = np.zeros((len(given), 4), np.uint8)  # as the upper bytes of 32 bits
    wide[:, 4 - width :] = given ^ 0x80 if width == 1 else given
    return (wide.view("<i4") * np.float32(2.0**-31)).reshape(-1, channels)


def resample(audio_N: np.ndarray, rate: int, to: int = SAMPLE_RATE) -> np.ndarray:
    """The sound at another rate, (ceil(N to / rate),) float32: what both rates can hold is kept.

    Each sample of the result is a sum of those around it, weighted by a low pass (a sinc under a
    Kaiser window). Its place between them takes to / gcd values, the phases, with a filter each.
    """
    if rate == to:
        return audio_N.astype(np.float32)
    common = math.gcd(rate, to)
    up, down = to // common, rate // common
    cutoff = min(1.0, up / down)  # of half the given rate
    reach = math.ceil(CROSSINGS / cutoff)
    count = -(-len(audio_N) * up // down)
    padded = np.pad(audio_N.astype(np.float32), (reach, reach + 1))
    windows_NK = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 2)
    around_K = np.arange(-reach, reach + 2)
    out_M = np.empty(count, np.float32)
    for phase in range(min(up, count)):
        first, part = divmod(phase * down, up)
        away_K = around_K - part / up
        inside_K = np.maximum(0.0, 1.0 - (away_K / (reach + 1)) ** 2)
        filter_K = cutoff * np.sinc(cutoff * away_K) * np.i0(KAISER * np.sqrt(inside_K))
        filter_K = (filter_K / filter_K.sum()).astype(np.float32)
        wanted = len(out_M[phase::up])
        out_M[phase::up] = windows_NK[first::down][:wanted] @ filter_K
    return out_M
