"""How large a batch pays: the critical batch from the noise of the gradient.

McCandlish et al. 2018 (arXiv:1812.06162): steps S and examples E to reach one loss trade by
    (S/S_min - 1) (E/E_min - 1) = 1,   B_crit = E_min / S_min
    S = S_min (1 + B_crit/B),   E = E_min (1 + B/B_crit)
and B_crit is near B_simple = tr(Sigma) / |G|^2, the variance of one example's gradient over the
square of the true one. Two sizes of batch give both without bias (appendix A.1):
    |G|^2     = (B_big |G_big|^2 - B_small |G_small|^2) / (B_big - B_small)
    tr(Sigma) = (|G_small|^2 - |G_big|^2) / (1/B_small - 1/B_big)
Either estimate is noisy and their ratio biased: average each over many steps, then divide.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nn.analysis.scaling_laws.table import Array


@dataclass(frozen=True)
class NoiseScale:
    """Averages over steps of |G|^2 and tr(Sigma); `b_simple` in the units of the batches."""

    squared_gradient: float
    trace: float

    @property
    def b_simple(self) -> float:
        """tr(Sigma) / |G|^2; infinite when no gradient stands out of the noise."""
        return self.trace / self.squared_gradient if self.squared_gradient > 0 else float("inf")


def noise_scale(small: Array, big: Array, b_small: float, b_big: float) -> NoiseScale:
    """From squared norms of gradients, (steps,) each, of batches of two sizes.

    `small`: mean of |G|^2 over the devices' or microbatches' gradients; `big`: of their mean.

    Raises:
        ValueError: batches that are not of two sizes.
    """
    if not 0 < b_small < b_big:
        raise ValueError(
            f"batches of {b_small:g} and {b_big:g}: the small one must be smaller; with one "
            f"microbatch per step there is nothing to compare, accumulate at least 2"
        )
    small_mean, big_mean = float(np.mean(small)), float(np.mean(big))
    squared = (b_big * big_mean - b_small * small_mean) / (b_big - b_small)
    trace = (small_mean - big_mean) / (1 / b_small - 1 / b_big)
    return NoiseScale(squared, trace)


@dataclass(frozen=True)
class Tradeoff:
    """Steps against examples to one loss."""

    s_min: float
    b_crit: float

    @property
    def e_min(self) -> float:
        """Examples (or tokens) in the limit of small batches."""
        return self.s_min * self.b_crit

    def steps(self, batch: float) -> float:
        """Steps to the loss with a batch."""
        return self.s_min * (1 + self.b_crit / batch)

    def examples(self, batch: float) -> float:
        """Examples to the loss with a batch: twice the least at B_crit."""
        return self.e_min * (1 + batch / self.b_crit)


def fit_tradeoff(batch: Array, steps: Array) -> Tradeoff:
    """From the steps that runs of several batch sizes, (runs,), took to one loss.

    Least squares of the relative error of S = S_min + E_min / B, linear in both unknowns.
    """
    b, s = np.asarray(batch, np.float64), np.asarray(steps, np.float64)
    if len(np.unique(b)) < 2:
        raise ValueError(f"{len(np.unique(b))} batch size: at least 2 different ones are needed")
    design = np.stack([1 / s, 1 / (b * s)], axis=1)
    scale = np.linalg.norm(design, axis=0)
    s_min, e_min = np.linalg.lstsq(design / scale, np.ones_like(s), rcond=None)[0] / scale
    if s_min <= 0 or e_min <= 0:
        raise ValueError(
            f"S_min = {s_min:.4g}, E_min = {e_min:.4g}: these batches do not bracket the critical "
            f"one; steps should fall as 1/B at one end and hardly at the other"
        )
    return Tradeoff(float(s_min), float(e_min / s_min))


def critical_batch(L: float) -> float:
    """Tokens by Kaplan et al. 2020, equation 1.4: 2.1e8 / L^(1/0.21), L in nats per token."""
    return 2.1e8 / L ** (1 / 0.21)
