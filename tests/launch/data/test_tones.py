"""Words of notes and the letters that write them down."""

from __future__ import annotations

import numpy as np
import pytest

from launch.data import tones
from launch.data.source import open_split


def test_each_letter_sounds_at_its_pitch_and_spaces_are_silent() -> None:
    options = tones.Config(noise=0.0)
    written = np.asarray([tones.FIRST, tones.FIRST + 7, tones.SPACE, tones.FIRST + 4])
    audio = tones.sound(written, options, np.random.default_rng(0))
    assert audio.shape == (options.samples,) == (10240,) and audio.dtype == np.float32

    def loudest(start: int) -> float:
        power = np.abs(np.fft.rfft(audio[start : start + 800], 16_000))
        return float(np.argmax(power))

    # Notes last 60 to 80 ms: the first 50 ms of one, and 50 ms that lie inside the second.
    assert abs(loudest(0) - 300) < 10
    assert abs(loudest(1280) - 300 * 2**1.75) < 15
    silent = np.flatnonzero(np.convolve(audio == 0, np.ones(1280), "valid") == 1280)
    assert 2 * 960 <= silent[0] <= 2 * 1280
    assert abs(loudest(silent[0] + 1280) - 600) < 10


def test_a_transcript_is_letters_between_start_and_end() -> None:
    source = open_split("tones", {"examples": 64}, sequence_length=8)
    texts = []
    for index in range(len(source)):
        row = source[index]
        count = int(row["mask"].sum())
        assert row["targets"][count - 1] == tones.END
        assert row["decoder_inputs"].tolist() == [tones.START, *row["targets"][:-1]]
        assert row["mask"].tolist() == [1.0] * count + [0.0] * (8 - count)
        texts.append(tones.text(row["targets"]))
        assert len(texts[-1]) == count - 1
        assert all(1 <= len(word) <= 3 for word in texts[-1].split(" "))
    assert {len(text.split()) for text in texts} == {1, 2}
    assert tones.text([tones.START, 3, tones.END, 4]) == "?a"


def test_splits_and_seeds_differ_and_indices_are_checked() -> None:
    train, test = (open_split("tones", split=s, sequence_length=8) for s in ("train", "test"))
    other = open_split("tones", {"content_seed": 1}, sequence_length=8)
    assert (train[0]["inputs"] != test[0]["inputs"]).any()
    assert (train[0]["inputs"] != other[0]["inputs"]).any()
    np.testing.assert_array_equal(train[3]["inputs"], train.read([3])["inputs"][0])
    assert len(test) == len(train) // 16
    with pytest.raises(IndexError, match="example 1024 of 1024"):
        test[1024]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sequence_length is 9: it must be between 8 and 8"):
        open_split("tones", sequence_length=9)
    with pytest.raises(ValueError, match="data.words is 0: it must be at least 1"):
        tones.Config(words=0)
