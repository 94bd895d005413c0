"""Approach 1: the envelope of training curves (Hoffmann et al. 2022, section 3.1).

Every run's curve is smoothed; at each of 1,500 log-spaced amounts of compute the run with the
lowest loss gives N*(C) and, by the tokens it had then seen, D*(C); power laws go through these.

Two traps. A point in the middle of a run whose learning rate decays only at its end lies above what
a run of that length would reach: use curves of constant (or matched) schedules. And at either end
of the table the best run is the smallest or the largest that happens to exist: such stretches are
left out (`edges`).

Legend: J amounts of compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nn.analysis.scaling_laws.table import Array, Mask


@dataclass(frozen=True)
class Curve:
    """One run: its size and, at rising amounts of compute, tokens and loss, each (points,)."""

    N: float
    C: Array
    D: Array
    L: Array


@dataclass(frozen=True)
class Envelope:
    """The lowest loss at each compute, (J,), who reached it, and the power laws through it."""

    C: Array
    N: Array
    D: Array
    L: Array
    edges: Mask  # (J,): True where the best is the smallest or largest size seen there: not fitted
    a: float
    log_k: float
    b: float
    log_kd: float


def smooth(curve: Curve, width: float = 0.1) -> Array:
    """ln L at the curve's points: straight lines fitted under a Gaussian weight in ln C.

    `width`: standard deviation of the weight in ln C. Locally linear, so that a power law passes
    unchanged (a moving average would bend its ends).
    """
    x, y = np.log(curve.C), np.log(curve.L)
    out = np.empty_like(y)
    for i, centre in enumerate(x):
        near = slice(*np.searchsorted(x, [centre - 4 * width, centre + 4 * width]))
        u, v = x[near] - centre, y[near]
        w = np.exp(-0.5 * (u / width) ** 2)
        total, first, second = w.sum(), (w * u).sum(), (w * u * u).sum()
        spread = total * second - first**2
        if spread <= 1e-12 * total**2 * width**2:  # a point on its own
            out[i] = (w * v).sum() / total
        else:
            out[i] = (second * (w * v).sum() - first * (w * u * v).sum()) / spread
    return out


def fit_envelope(curves: Sequence[Curve], points: int = 1500, width: float = 0.1) -> Envelope:
    """The envelope of runs of at least three sizes.

    Raises:
        ValueError: fewer than three sizes, a curve whose compute does not rise, or an envelope on
            which no size between the smallest and the largest is ever the best.
    """
    sizes = np.asarray([c.N for c in curves], np.float64)
    if len(np.unique(sizes)) < 3:
        raise ValueError(f"{len(np.unique(sizes))} sizes of model: an envelope needs at least 3")
    for i, c in enumerate(curves):
        if len(c.C) < 2 or not (np.diff(c.C) > 0).all():
            raise ValueError(
                f"curve {i} (N = {c.N:.4g}): its compute must rise from point to point"
            )
    low = min(float(c.C[0]) for c in curves)
    high = max(float(c.C[-1]) for c in curves)
    log_C = np.linspace(np.log(low), np.log(high), points)
    losses = np.full((len(curves), points), np.inf)
    tokens = np.zeros((len(curves), points))
    for i, c in enumerate(curves):
        x = np.log(c.C)
        inside = (log_C >= x[0]) & (log_C <= x[-1])
        losses[i, inside] = np.interp(log_C[inside], x, smooth(c, width))
        tokens[i, inside] = np.interp(log_C[inside], x, np.log(c.D))
    best = np.argmin(losses, axis=0)
    seen = np.isfinite(losses).any(axis=0)
    best, log_C, columns = best[seen], log_C[seen], np.flatnonzero(seen)
    N = sizes[best]
    there = np.isfinite(losses[:, seen])
    smallest = np.where(there, sizes[:, None], np.inf).min(axis=0)
    largest = np.where(there, sizes[:, None], 0.0).max(axis=0)
    edges = (smallest == N) | (largest == N)
    if (~edges).sum() < 2:
        raise ValueError(
            "the best size is everywhere the smallest or the largest that was trained with as much "
            "compute: train sizes whose curves cross"
        )
    log_D = tokens[best, columns]
    a, log_k = np.polyfit(log_C[~edges], np.log(N[~edges]), 1)
    b, log_kd = np.polyfit(log_C[~edges], log_D[~edges], 1)
    L = np.exp(losses[best, columns])
    fits = float(a), float(log_k), float(b), float(log_kd)
    return Envelope(np.exp(log_C), N, np.exp(log_D), L, edges, *fits)
