"""From sound to the pictures that networks for speech read: log-mel spectrograms.

Radford et al. 2022 (Whisper), section 2.2: the power of overlapping windows of 25 ms, every 10 ms,
in bands that are spaced as the ear spaces them, on a logarithmic scale.

Legend: B batch, N samples, F frames, W samples of a window, K frequencies, M mel bands.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

SAMPLE_RATE = 16_000  # Hz
WINDOW = 400  # samples
HOP = 160  # samples from one frame to the next
SECONDS = 30  # that Whisper hears at a time
RANGE = 8.0  # decades of power below the loudest that are told apart
FLOOR = 1e-10  # of the power of a band

# Slaney's mel scale (1998): linear up to the knee, logarithmic above it.
LINEAR = 3 / 200  # mels per Hz
KNEE = 1000.0  # Hz
LOG_STEP = math.log(6.4) / 27  # of ln(Hz) per mel


def mels(hertz: np.ndarray) -> np.ndarray:
    """Slaney's scale."""
    above = KNEE * LINEAR + np.log(np.maximum(hertz, KNEE) / KNEE) / LOG_STEP
    return np.where(hertz < KNEE, hertz * LINEAR, above)


def hertz(mel: np.ndarray) -> np.ndarray:
    """The reverse of `mels`."""
    above = KNEE * np.exp(LOG_STEP * (np.maximum(mel, KNEE * LINEAR) - KNEE * LINEAR))
    return np.where(mel < KNEE * LINEAR, mel / LINEAR, above)


@functools.cache
def mel_filters(bands: int) -> np.ndarray:
    """Weights of the frequencies of a window in each band, (K, M) float32.

    Triangles between the centres of a band's neighbours, which lie evenly on the mel scale from 0
    to half the sampling rate; each has the area 1 over Hz.

    Raises:
      ValueError: so many bands that one has no frequency in it.
    """
    top = SAMPLE_RATE / 2
    edges = hertz(np.linspace(0.0, mels(np.asarray(top)), bands + 2))
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    bins_K1 = np.linspace(0.0, top, WINDOW // 2 + 1)[:, None]
    rising, falling = (bins_K1 - low) / (centre - low), (high - bins_K1) / (high - centre)
    weights_KM = np.maximum(0.0, np.minimum(rising, falling)) * 2.0 / (high - low)
    if not weights_KM.any(axis=0).all():
        raise ValueError(
            f"{bands} mel bands: some have none of the {len(bins_K1)} frequencies of a window; "
            "nearest: 128"
        )
    return weights_KM.astype(np.float32)


def fit(audio_BN: jax.Array, samples: int = SECONDS * SAMPLE_RATE) -> jax.Array:
    """Rows of `samples`: silence is added at the end, or what is beyond is cut off."""
    audio_BN = audio_BN[:, :samples]
    return jnp.pad(audio_BN, ((0, 0), (0, samples - audio_BN.shape[1])))


def log_mel(audio_BN: jax.Array, bands: int) -> jax.Array:
    """Log-mel spectrogram of sound at 16 kHz in -1..1, (B, N) -> (B, N // 160, M) float32.

    A frame is centred on each 160th sample, the sound reflected at its ends. Powers count from 8
    decades below the loudest of the row on, and (log10 + 4) / 4 brings them to about -1..1.

    Raises:
      ValueError: too short a row to be reflected.
    """
    if audio_BN.shape[1] <= WINDOW // 2:
        raise ValueError(
            f"{audio_BN.shape[1]} samples of sound: at least {WINDOW // 2 + 1} are needed"
        )
    ends = (WINDOW // 2, WINDOW // 2)
    padded = jnp.pad(audio_BN.astype(jnp.float32), ((0, 0), ends), mode="reflect")
    starts_F1 = HOP * np.arange(audio_BN.shape[1] // HOP)[:, None]
    window_11W = np.sin(np.pi * np.arange(WINDOW) / WINDOW)[None, None] ** 2  # Hann's, periodic
    frames_BFW = padded[:, starts_F1 + np.arange(WINDOW)] * window_11W.astype(np.float32)
    spectrum_BFK = jnp.fft.rfft(frames_BFW)
    power_BFK = jnp.square(spectrum_BFK.real) + jnp.square(spectrum_BFK.imag)
    exact = jax.lax.Precision.HIGHEST  # a loud band must not hide in the rounding of a quiet one
    bands_BFM = jnp.matmul(power_BFK, mel_filters(bands), precision=exact)
    log_BFM = jnp.log10(jnp.maximum(bands_BFM, FLOOR))
    loudest_B11 = jnp.max(log_BFM, axis=(1, 2), keepdims=True)
    return (jnp.maximum(log_BFM, loudest_B11 - RANGE) + 4.0) / 4.0
