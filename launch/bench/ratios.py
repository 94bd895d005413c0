"""Ratios of alternating rounds: the median of each round, then of the rounds' ratios."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Ratio:
    """Ours over the peer; below 1 ours is faster. low, high: the 10 % and 90 % points."""

    median: float
    low: float
    high: float
    rounds: tuple[float, ...]


def quantile(values: Sequence[float], share: float) -> float:
    """The point below which `share` of the values lie, with linear interpolation."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def ratio(ours: Sequence[Sequence[float]], peer: Sequence[Sequence[float]]) -> Ratio:
    """From the samples of each round; round i of ours is compared with round i of the peer.

    Rounds differ, as a shared machine does, more than the two sides of one round.
    """
    pairs = zip(ours, peer, strict=True)
    rounds = tuple(statistics.median(a) / statistics.median(b) for a, b in pairs)
    return Ratio(statistics.median(rounds), quantile(rounds, 0.1), quantile(rounds, 0.9), rounds)


def typical(rounds: Sequence[Sequence[float]]) -> float:
    """The median of the rounds' medians."""
    return statistics.median(statistics.median(samples) for samples in rounds)
