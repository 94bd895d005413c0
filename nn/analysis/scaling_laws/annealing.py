"""The loss at every step of a run from its schedule of learning rates.

    Tissue et al. 2024 (arXiv:2408.11029), equation 1:   L(s) = L0 + A S1^-alpha - C S2
        S1 = sum_{i<=s} eta_i: the area under the schedule
        S2 = sum_{i<=s} sum_{k<=i} (eta_{k-1} - eta_k) lambda^(i-k): the area that decay has freed
    Luo et al. 2025 (arXiv:2503.12811), the multi-power law:
        L(s) = L0 + A (S1 + S_W)^-alpha - B sum_{k<=s} (eta_{k-1} - eta_k) G(eta_k^-gamma S_k)
        G(x) = 1 - (C x + 1)^-beta,   S_k = sum_{k<=i<=s} eta_i

What for: one long run at a constant rate (the trunk) and a few decays from it tell what the decayed
loss would be at every length. C of the first law (B of the second) is the gain of decay: curves of
constant rate alone do not hold it.

Legend: T steps of a schedule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar, nnls
from scipy.signal import lfilter

from nn.analysis.scaling_laws.table import Array, Labels

LAMBDA = 0.999


def areas(lr_T: Array, warmup: int = 0, decay: float = LAMBDA) -> tuple[Array, Array]:
    """S1 and S2 after every step, each (T,).

    The first `warmup` steps count with the rate that they warm up to (section 3.4 of the paper):
    a rise is no annealing.
    """
    lr = np.array(lr_T, np.float64)
    lr[:warmup] = lr[warmup]
    momentum = lfilter([1.0], [1.0, -decay], -np.diff(lr, prepend=lr[0]))
    return np.cumsum(lr), np.cumsum(momentum)


@dataclass(frozen=True)
class Annealing:
    """The fitted law of Tissue et al."""

    L0: float
    A: float
    alpha: float
    C: float
    decay: float = LAMBDA

    def loss(self, lr_T: Array, warmup: int = 0) -> Array:
        """L after every step of a schedule, (T,)."""
        S1, S2 = areas(lr_T, warmup, self.decay)
        return self.L0 + self.A * S1**-self.alpha - self.C * S2


@dataclass(frozen=True)
class Run:
    """A schedule (T,), the losses measured along it, and after which of its steps (from 0)."""

    lr_T: Array
    steps: Labels
    L: Array
    warmup: int = 0


def fit_annealing(runs: Sequence[Run], decay: float = LAMBDA) -> Annealing:
    """Least squares of the relative error over all points of all runs.

    For a given alpha the law is linear in L0, A and C, which are not negative (variable projection:
    Golub and Pereyra 1973), so that only alpha is searched.

    Raises:
        ValueError: no run decays its learning rate, so that C can be anything.
    """
    S1, S2 = (
        np.concatenate([areas(r.lr_T, r.warmup, decay)[i][r.steps] for r in runs]) for i in (0, 1)
    )
    L = np.concatenate([np.asarray(r.L, np.float64) for r in runs])
    if not (np.abs(S2) > 1e-9 * S1.max()).any():
        raise ValueError(
            "every run has a constant learning rate up to its last measured step: the gain of "
            "decay, C, can not be seen; add one run (or branch) whose rate decays"
        )

    def project(alpha: float) -> tuple[Array, float]:
        design = np.stack([np.ones_like(S1), (S1 / S1.max()) ** -alpha, -S2], axis=1) / L[:, None]
        scale = np.linalg.norm(design, axis=0)
        weights, residual = nnls(design / scale, np.ones_like(L))
        return weights / scale, float(residual)

    grid = np.geomspace(0.02, 3.0, 40)
    best = int(np.argmin([project(alpha)[1] for alpha in grid]))
    bounds = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    options = {"xatol": 1e-12}
    found = minimize_scalar(
        lambda alpha: project(alpha)[1], bounds=bounds, method="bounded", options=options
    )
    alpha = float(found.x)
    (L0, A, C), _ = project(alpha)
    return Annealing(float(L0), float(A * S1.max() ** alpha), alpha, float(C), decay)


@dataclass(frozen=True)
class MultiPower:
    """The multi-power law of Luo et al.; S_W: area of a warm-up that `loss` does not see."""

    L0: float
    A: float
    alpha: float
    B: float
    C: float
    beta: float
    gamma: float
    S_W: float = 0.0

    def loss(self, lr_T: Array, steps: Labels) -> Array:
        """L after the given steps (from 0) of a schedule (T,) of positive rates."""
        lr = np.asarray(lr_T, np.float64)
        if not (lr > 0).all():
            at = int(np.argmin(lr > 0))
            raise ValueError(
                f"learning rate {lr[at]} at step {at}: the law needs positive ones (eta^-gamma); "
                f"end a decay at a small rate, such as 1e-3 of the peak"
            )
        S1 = np.cumsum(lr)
        drops = -np.diff(lr)  # of step k to k + 1
        changed = np.flatnonzero(drops)
        gain = np.zeros(len(steps))
        for i, step in enumerate(steps):
            k = changed[changed < step] + 1
            area = S1[step] - S1[k - 1]
            saturated = 1 - (self.C * lr[k] ** -self.gamma * area + 1) ** -self.beta
            gain[i] = (drops[k - 1] * saturated).sum()
        return self.L0 + self.A * (S1[steps] + self.S_W) ** -self.alpha - self.B * gain
