"""How the tokens of a window are cut into segments, and where the next window begins."""

from __future__ import annotations

import pytest

from launch.run import transcribing
from launch.run.transcribing import STEP, Segment
from launch.run.transcript import Rules

# Tokens: 0 to 3 text, 4 the end, 5 special, 6 "no timestamps", those from 7 on times.
TIMED, END, ZERO = Rules(end=4, no_timestamps=6), 4, 7
HEARD = 20 * STEP  # samples


@pytest.mark.parametrize(
    "tokens, expected, further",
    [
        # Two complete segments, one begun: it is heard again, from the end of the second.
        ([7, 1, 9, 10, 2, 12, 13, 3, END], [(0, 2, [1]), (3, 5, [2])], 5 * STEP),
        ([7, 1, 9, 10, 2, 12, 13, END], [(0, 2, [1]), (3, 5, [2])], 5 * STEP),
        # The last one ends alone: what follows is silence.
        ([7, 1, 9, 9, 2, 12, END], [(0, 2, [1]), (2, 5, [2])], HEARD),
        ([8, 1, 2, 9, END], [(1, 2, [1, 2])], HEARD),
        ([9, 1, 2], [(2, 20, [1, 2])], HEARD),  # cut off by the length
        ([7, 1, 5, 9, 9, END], [(0, 2, [1])], 2 * STEP),  # special tokens are no text
        ([7, 9, END], [], HEARD),
        ([END], [], HEARD),
        ([], [], HEARD),
    ],
)
def test_segments_of_a_window(
    tokens: list[int], expected: list[tuple[int, int, list[int]]], further: int
) -> None:
    found, moved = transcribing.cut(tokens, TIMED, HEARD)
    assert found == [Segment(start * STEP, end * STEP, text) for start, end, text in expected]
    assert moved == further


def test_without_times_a_window_is_a_segment() -> None:
    tokens = [1, 2, 5, 8, 9, END]
    assert transcribing.cut(tokens, Rules(end=4), 7) == ([Segment(0, 7, [1, 2])], 7)


def test_times_as_people_write_them() -> None:
    assert Segment(0, 40_000, []).times() == "[00:00.00 -> 00:02.50]"
    hour = 3600 * 16_000
    assert Segment(61 * 16_000, hour - 1, []).times() == "[01:01.00 -> 01:00:00.00]"
    assert transcribing.clock(hour + 83 * 16_000 + 160) == "01:01:23.01"
    assert Segment(8000, 24_000, []).seconds == (0.5, 1.5)
