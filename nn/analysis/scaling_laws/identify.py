"""Can these runs tell the parameters of the law apart?

With D = k N for every run, N^-alpha and D^-beta are two powers of one variable: their exponents can
trade places and the split of the loss between them is free. Fits to such tables give a 5-95 % range
of the optimal exponent a from -0.66 to 3.69 (with ratios D/N of 5, 20 and 80: 0.44 to 0.47). Hence
fewer than three distinct ratios D/N, or ratios within a factor of two, are refused.

Legend as in `solve.py`: P parameters, I rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nn.analysis.scaling_laws.table import Array, Mask, View

MIN_RATIOS = 3
MIN_SPREAD = 2.0
SAME_RATIO = 0.05  # ratios closer than 5 % count as one


@dataclass(frozen=True)
class Design:
    """How the sizes and tokens of the runs lie: correlation of logarithms, ratios D/N."""

    correlation: float
    ratios: int
    spread: float

    @classmethod
    def of(cls, view: View) -> Design:
        """The design of a table under one convention."""
        n, d = np.log(view.N), np.log(view.D)
        flat = np.ptp(n) < 1e-12 or np.ptp(d) < 1e-12
        correlation = 0.0 if flat else float(np.corrcoef(n, d)[0, 1])
        ratio = np.sort(d - n)
        distinct = 1 + int((np.diff(ratio) > np.log1p(SAME_RATIO)).sum())
        return cls(correlation, distinct, float(np.exp(np.ptp(ratio))))

    def refuse(self) -> None:
        """Raises ValueError with the explanation when N and D do not vary apart."""
        if self.ratios >= MIN_RATIOS and self.spread >= MIN_SPREAD:
            return
        raise ValueError(
            f"these runs have {self.ratios} distinct ratio{'s' * (self.ratios > 1)} D/N within a "
            f"factor of {self.spread:.3g} (correlation of ln N and ln D: {self.correlation:.3f}): "
            f"N and D do not vary apart, so that A/N^alpha and B/D^beta can not be told from each "
            f"other, however well the fit looks. Needed: at least {MIN_RATIOS} ratios over a "
            f"factor of {MIN_SPREAD:g}, such as 5, 20 and 80 tokens per parameter, or IsoFLOP "
            f"grids. Nearest valid choices: form='power' for L(C) along this line, or "
            f"pin={{'B': ..., 'beta': ...}} from elsewhere"
        )


@dataclass(frozen=True)
class Sensitivity:
    """Of the derivatives of ln L by the free parameters, scaled to unit columns."""

    condition: float  # largest over smallest singular value
    rank: int
    parameters: int

    @classmethod
    def of(cls, jacobian_PI: Array, weights: Array, free_P: Mask) -> Sensitivity:
        """From the derivatives at the optimum; rank: singular values above 1e-7 of the largest."""
        scaled = (jacobian_PI * np.sqrt(weights))[free_P]
        norms = np.linalg.norm(scaled, axis=1, keepdims=True)
        singular = np.linalg.svd(scaled / np.maximum(norms, 1e-300), compute_uv=False)
        rank = int((singular > 1e-7 * singular[0]).sum())
        smallest = max(float(singular[-1]), 1e-300)
        return cls(float(singular[0]) / smallest, rank, int(free_P.sum()))
