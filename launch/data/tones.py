"""Made-up sound for models of speech: words of notes, and the letters that write them down.

A note is a decaying tone of one of eight pitches, its loudness and length drawn; silence parts
words, and noise lies under all. The letters are a to h, and a space between words. Every example is
a pure function of (content_seed, split, index); nothing is stored. Size: `examples` per split. No
source, no licence.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable

import numpy as np

from launch.data import randomness
from launch.data.source import SPLITS, Example, Source, Spec, check_choice, check_range

VERSION = "1.0.0"
RATE = 16_000  # samples per second
START, END, SPACE, FIRST = 0, 1, 2, 3  # tokens: before a transcript, after it, the first letter
LETTERS = "abcdefgh"
LOWEST = 300.0  # Hz; each letter is a quarter of an octave above the one before
NOTE, SHORTEST = 1280, 960  # samples of a note, at most and at least: 80 and 60 ms
GAP = 1280  # samples of silence between words
LONGEST = 3  # notes of a word


@dataclasses.dataclass(frozen=True)
class Config:
    words: int = 2  # of an example, at most
    noise: float = 0.01  # standard deviation; notes have amplitudes of 0.1 to 0.5
    examples: int = 16384  # per split; validation and test have a sixteenth
    content_seed: int = 0  # another number, other data

    def __post_init__(self) -> None:
        check_range("words", self.words, 1)
        check_range("noise", self.noise, 0)
        check_range("examples", self.examples, 16)

    @property
    def tokens(self) -> int:
        """Of the longest transcript: letters, spaces and the end."""
        return self.words * (LONGEST + 1)

    @property
    def samples(self) -> int:
        """Of every example: notes and gaps of the longest transcript."""
        return self.words * (LONGEST * NOTE + GAP)


class Tones(Source):
    """Examples computed when they are asked for."""

    def __len__(self) -> int:
        return int(self.options.examples // (1 if self.split == "train" else 16))

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        options: Config = self.options
        generator = randomness.generator(options.content_seed, self.split, index)
        counts = generator.integers(1, LONGEST + 1, generator.integers(1, options.words + 1))
        words = [generator.integers(FIRST, FIRST + len(LETTERS), n) for n in counts]
        written = np.concatenate([np.append(word, SPACE) for word in words])
        targets = np.zeros(options.tokens, np.int32)
        targets[: len(written)] = written
        targets[len(written) - 1] = END  # in place of the last space
        decoder_inputs = np.append(np.int32(START), targets[:-1])
        mask = (np.arange(options.tokens) < len(written)).astype(np.float32)
        return {
            "inputs": sound(written, options, generator),
            "decoder_inputs": decoder_inputs,
            "targets": targets,
            "mask": mask,
        }


def sound(written: np.ndarray, options: Config, generator: np.random.Generator) -> np.ndarray:
    """(samples,) float32 in about -1..1; a SPACE is a gap."""
    audio = options.noise * generator.standard_normal(options.samples)
    place = 0
    for token in written:
        if token == SPACE:
            place += GAP
            continue
        length = int(generator.integers(SHORTEST, NOTE + 1))
        time = np.arange(length) / RATE
        pitch = LOWEST * 2.0 ** ((token - FIRST) / 4)
        loudness = generator.uniform(0.1, 0.5)
        fading = np.exp(-3.0 * time * RATE / length)
        audio[place : place + length] += loudness * fading * np.sin(2 * np.pi * pitch * time)
        place += length
    return audio.astype(np.float32)


def text(tokens: Iterable[int]) -> str:
    """The transcript up to its end; "?" for a token that has no business there."""
    found = ""
    for token in map(int, tokens):
        if token == END:
            break
        letter = token - FIRST
        found += " " if token == SPACE else LETTERS[letter] if 0 <= letter < 8 else "?"
    return found


def open_source(
    options: Config,
    *,
    split: str,
    sequence_length: int = 8,
    directory: str | os.PathLike[str] | None = None,
) -> Tones:
    """One split: `inputs` (samples,) of sound; tokens (sequence_length,)."""
    del directory  # nothing is stored
    check_choice("split of data set tones", split, SPLITS)
    check_range("sequence_length", sequence_length, options.tokens, options.tokens, "tokens")
    size = FIRST + len(LETTERS)
    spec = Spec("sequence_to_sequence", (options.samples,), size, "tones", VERSION)
    return Tones(spec, split, options, sequence_length=sequence_length)
