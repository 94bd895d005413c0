"""Log-mel spectrograms, against sums written out in float64."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from nn.layers import spectrogram


def test_the_mel_scale_and_its_reverse() -> None:
    # Slaney's Auditory Toolbox: 200/3 Hz per step up to 1 kHz, then 27 steps to 6.4 kHz.
    hertz = np.asarray([0.0, 200.0, 1000.0, 6400.0])
    np.testing.assert_allclose(spectrogram.mels(hertz), [0, 3, 15, 42])
    np.testing.assert_allclose(spectrogram.hertz(np.asarray([0, 3, 15, 42])), hertz)


@pytest.mark.parametrize("bands", [80, 128])
def test_filters_overlap_in_pairs_and_have_one_area(bands: int) -> None:
    filters_KM = spectrogram.mel_filters(bands)
    assert filters_KM.shape == (201, bands) and filters_KM.dtype == np.float32
    assert ((filters_KM > 0).sum(axis=1) <= 2).all()
    # Over wide bands, of which many frequencies of 40 Hz make a good sum.
    np.testing.assert_allclose(40 * filters_KM[:, -5:].sum(axis=0), 1, rtol=0.02)


def test_too_many_bands_are_refused() -> None:
    with pytest.raises(ValueError, match="300 mel bands: some have none"):
        spectrogram.mel_filters(300)


def test_equals_the_definition() -> None:
    audio_BN = np.random.default_rng(0).normal(size=(2, 1000))
    audio_BN[1, 500:] = 0
    n = np.arange(400)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / 400)
    waves = np.exp(-2j * np.pi * np.outer(np.arange(201), n) / 400)
    wanted = np.empty((2, 6, 80))
    for row, audio in enumerate(audio_BN):
        mirrored = np.concatenate([audio[200:0:-1], audio, audio[-2:-202:-1]])
        for frame in range(6):
            power = np.abs(waves @ (mirrored[160 * frame : 160 * frame + 400] * window)) ** 2
            wanted[row, frame] = np.log10(np.maximum(power @ spectrogram.mel_filters(80), 1e-10))
        wanted[row] = (np.maximum(wanted[row], wanted[row].max() - 8) + 4) / 4
    found = spectrogram.log_mel(jnp.asarray(audio_BN, jnp.float32), 80)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    assert wanted[1].min() == wanted[1].max() - 2  # silence lies at the floor


def test_fit_adds_silence_or_cuts() -> None:
    audio = jnp.arange(1.0, 6.0)[None]
    np.testing.assert_array_equal(spectrogram.fit(audio, 7), [[1, 2, 3, 4, 5, 0, 0]])
    np.testing.assert_array_equal(spectrogram.fit(audio, 3), [[1, 2, 3]])
    assert spectrogram.fit(audio).shape == (1, 480_000)


def test_sound_too_short_to_be_reflected_is_refused() -> None:
    with pytest.raises(ValueError, match="200 samples of sound: at least 201"):
        spectrogram.log_mel(jnp.zeros((1, 200)), 80)
