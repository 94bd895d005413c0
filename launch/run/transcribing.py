"""From sound of any length to text: windows of a model's length, one after another, on a mesh.

Radford et al. 2022, section 4.5 (long-form transcription), without its fallback to higher
temperatures and without the text of the window before as a prompt: each window stands alone.

Legend: B windows, N samples of one.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from launch.run import decode, encoding, sampling, transcript
from launch.run.logits import Sampling
from launch.run.sampling import Trained
from launch.run.transcript import Rules
from nn.layers.spectrogram import HOP, SAMPLE_RATE
from nn.parallel import BATCH_AXES

STEP = 2 * HOP  # samples from one time that can be written to the next: 20 ms, as of the encoder

Start = Sequence[int]  # tokens before a transcript, of `transcript.prompt`
Write = Callable[[list[np.ndarray], list[Start]], list[list[int]]]  # windows -> new tokens


@dataclasses.dataclass(frozen=True)
class Segment:
    """Times in samples of the whole sound; tokens of text only."""

    start: int
    end: int
    tokens: list[int]

    @property
    def seconds(self) -> tuple[float, float]:
        return self.start / SAMPLE_RATE, self.end / SAMPLE_RATE

    def times(self) -> str:
        """Such as `[00:00.00 -> 00:02.50]`."""
        return f"[{clock(self.start)} -> {clock(self.end)}]"


def clock(samples: int) -> str:
    """Minutes and seconds, with the hours where there are any."""
    hundredths = round(100 * samples / SAMPLE_RATE)
    minutes, rest = divmod(hundredths, 6000)
    hours = f"{minutes // 60:02}:" if minutes >= 60 else ""
    return f"{hours}{minutes % 60:02}:{rest // 100:02}.{rest % 100:02}"


class Listener:
    """Hears windows of sound, up to `rows` at a time, for programs that write them down."""

    def __init__(self, trained: Trained, rows: int = 1) -> None:
        """rows: at least so many; more where they do not divide over the mesh."""
        shards = int(np.prod([trained.mesh.shape[axis] for axis in BATCH_AXES]))
        self.trained, self.rows = trained, -(-rows // shards) * shards
        self.window = window_of(trained.model.config)
        place = (trained.specs, trained.mesh, trained.rules)
        self._hear = encoding.hearing(trained.model, *place)

    def writer(self, rules: Rules, new_tokens: int, beams: int = 1) -> Write:
        """What writes down windows after the tokens of `transcript.prompt`; compiled once."""
        trained = self.trained
        how = Sampling(temperature=0.0, stop=(rules.end,), beams=beams)
        loop = decode.loop_of(trained.model, new_tokens, how, rules)
        program = decode.OnMesh(loop, trained.mesh, trained.rules, trained.specs).whole()

        def write(windows: list[np.ndarray], starts: list[Start]) -> list[list[int]]:
            inputs = sampling.inputs_of(trained, [list(x) for x in self._filled(starts)], seed=0)
            view = program(trained.params, inputs.replace(memory=self._memory(windows)))
            tokens, ends = np.asarray(view["tokens"]), np.asarray(view["ends"])
            return [tokens[i, len(x) : ends[i]].tolist() for i, x in enumerate(starts)]

        return write

    def _memory(self, windows: list[np.ndarray]) -> Mapping[str, jax.Array]:
        """Silence follows a window that is too short."""
        sound_BN = np.zeros((self.rows, self.window), np.float32)
        for row_N, one in zip(sound_BN, self._filled(windows), strict=True):
            row_N[: len(one)] = one
        return self._hear(self.trained.params, *sampling.over_rows(self.trained, sound_BN))

    def _filled(self, rows: list[Any]) -> list[Any]:
        """With copies of the first, which are done when it is."""
        return rows + rows[:1] * (self.rows - len(rows))


def window_of(model: Any) -> int:
    """Samples that the encoder of a model's config has positions for."""
    return int(model.audio_context) * STEP


def at_once(sounds: Sequence[np.ndarray], rules: Rules, model: Any) -> int:
    """How many windows of these sounds can be written down at the same time."""
    return len(_first(sounds, rules, window_of(model)))


def languages(
    listener: Listener, sounds: Sequence[np.ndarray], generation: Mapping[str, Any]
) -> list[str]:
    """The likeliest language of the first window of each sound: after the token that starts a
    transcript, the likeliest of those of languages (Radford et al. 2022, section 2.3)."""
    codes = {token: name for name, token in transcript.languages(generation).items()}
    rules = Rules(end=transcript.rules(generation).end, only=tuple(codes))
    write = listener.writer(rules, new_tokens=1)
    start, found = transcript.prompt(generation, next(iter(codes.values())))[:1], []
    for place in range(0, len(sounds), listener.rows):
        heard = [sound[: listener.window] for sound in sounds[place : place + listener.rows]]
        found += [codes[token] for (token,) in write(heard, [start] * len(heard))]
    return found


def segments(
    listener: Listener,
    write: Write,
    rules: Rules,
    sounds: Sequence[np.ndarray],
    starts: Sequence[Start],
) -> Iterator[tuple[int, list[Segment]]]:
    """The segments of all sounds, window by window: (number of the sound, its next segments).

    Those of one sound come in order. With times in the rules a window begins where the last
    complete segment of the one before ended, so that only different sounds share a batch; without
    them windows follow each other.

    Args:
      write: by the listener, with the same rules.
      starts: the tokens before the transcript of each sound, as many for each.
    """
    window = listener.window
    waiting = collections.deque(_first(sounds, rules, window))
    while waiting:
        taken = [waiting.popleft() for _ in range(min(listener.rows, len(waiting)))]
        heard = [sounds[number][place : place + window] for number, place in taken]
        made = write(heard, [starts[number] for number, _ in taken])
        for (number, place), one, tokens in zip(taken, heard, made, strict=True):
            found, further = cut(tokens, rules, len(one))
            yield number, [Segment(place + x.start, place + x.end, x.tokens) for x in found]
            if rules.timed and place + further < len(sounds[number]):
                waiting.append((number, place + further))


def _first(sounds: Sequence[np.ndarray], rules: Rules, window: int) -> list[tuple[int, int]]:
    """Windows that need no other to be written down before: number of the sound, first sample."""
    return [
        (number, place)
        for number, sound in enumerate(sounds)
        for place in range(0, 1 if rules.timed else len(sound), window)
    ]


def cut(tokens: Sequence[int], rules: Rules, samples: int) -> tuple[list[Segment], int]:
    """The segments of a window, and how far into it the next one begins.

    A segment is complete where the time that ends it is followed by the one that starts the next;
    what comes after the last such place is heard again, unless its own end is the last token: then
    the rest of the window is silent. Without such a place the window is one segment.

    Args:
      samples: of sound in the window.
    """
    tokens = [token for token in tokens if token != rules.end]
    first_time = rules.no_timestamps + 1  # 0: none is a time
    when = [(t - first_time) * STEP if 0 < first_time <= t else None for t in tokens]
    pairs = [i for i in range(1, len(when)) if None not in when[i - 1 : i + 1]]
    whole = not pairs or (when[-1] is not None and when[-2] is None)
    ends = [*pairs, len(tokens)] if whole else pairs
    found = []
    for first, last in zip([0, *ends], ends, strict=False):
        times = [time for time in when[first:last] if time is not None]
        start = times[0] if times else 0
        end = times[-1] if len(times) > 1 else max(start, samples)
        text = [token for token in tokens[first:last] if token < rules.end]
        if text:
            found.append(Segment(start, end, text))
    # A model that knows no order of times could end a segment at 0: then nothing is heard again.
    return found, (None if whole else when[pairs[-1] - 1]) or samples
