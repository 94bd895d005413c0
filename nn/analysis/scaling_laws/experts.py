"""Laws for mixtures of experts.

    moe (Krajewski et al. 2024, arXiv:2402.07871, equation 9): granularity G of the experts
        L = E + (A + g G^-gamma) N^-alpha + B D^-beta,  N active parameters
    routed (Clark et al. 2022, arXiv:2202.01169, equation 1): number of experts x, tokens fixed
        log10 L = a log10 N + b log10 X + c log10 N log10 X + d,  N parameters of the dense model
        1/X = 1/(x - 1 + k) + 1/E_max,  k = 1/(1/E_start - 1/E_max): X = E_start for one expert and
        at most E_max for many.

Record active and total parameters and FLOPs per token of every run: N alone names none of them.

Legend as in `forms.py`: S sets of parameters, P parameters, I runs, K features.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nn.analysis.scaling_laws.forms import Form, column, log_sum_exp
from nn.analysis.scaling_laws.table import Array

LN_10 = float(np.log(10.0))


class MixtureOfExperts(Form):
    """L = E + (A + g G^-gamma) N^-alpha + B D^-beta."""

    name = "moe"
    equation = "L = E + (A + g/G^gamma)/N^alpha + B/D^beta"
    columns = ("N", "D", "granularity")
    parameters = ("E", "A", "alpha", "B", "beta", "g", "gamma")
    logs = ("E", "A", "B", "g")
    shears = (("A", "alpha", 0), ("B", "beta", 1), ("g", "alpha", 0), ("g", "gamma", 2))

    def value_and_jacobian(self, phi_SP: Array, x_KI: Array) -> tuple[Array, Array]:
        e, a, alpha, b, beta, g, gamma = (column(phi_SP, i) for i in range(7))
        terms = np.empty((4, len(phi_SP), x_KI.shape[-1]))
        terms[0] = e
        terms[1] = a - alpha * x_KI[0]
        terms[2] = b - beta * x_KI[1]
        terms[3] = g - alpha * x_KI[0] - gamma * x_KI[2]
        value, (p_E, p_A, p_D, p_G) = log_sum_exp(terms)
        by_alpha = -(p_A + p_G) * x_KI[0]
        jacobian = [p_E, p_A, by_alpha, p_D, -p_D * x_KI[1], p_G, -p_G * x_KI[2]]
        return value, np.stack(jacobian, axis=1)

    def grid(self, x_KI: Array, log_loss: Array) -> list[list[float]]:
        floor = float(log_loss.min())
        low, high = floor + np.log(0.15), floor + np.log(0.4)
        exponents = [0.1, 0.2, 0.5]
        return [[low, high], [high], exponents, [low, high], exponents, [low], [0.3, 1.0]]


class Routed(Form):
    """log10 L = a log10 N + b log10 X + c log10 N log10 X + d, X a saturating count of experts.

    phi holds ln k and ln E_max for (E_start, E_max): any two numbers are then a valid pair.
    """

    name = "routed"
    equation = "log10 L = a log10 N + b log10 X + c log10 N log10 X + d"
    columns = ("N", "experts")
    parameters = ("a", "b", "c", "d", "E_start", "E_max")
    logs = ()

    @property
    def pinnable(self) -> tuple[str, ...]:
        return ("a", "b", "c", "d")

    def features(self, columns: Mapping[str, Array]) -> Array:
        """(2, I): log10 N and the number of experts less one."""
        return np.stack([np.log10(columns["N"]), columns["experts"] - 1])

    def value_and_jacobian(self, phi_SP: Array, x_KI: Array) -> tuple[Array, Array]:
        a, b, c, d, log_k, log_max = (column(phi_SP, i) for i in range(6))
        k, most = np.exp(log_k), np.exp(log_max)
        n, others = x_KI
        inverse = 1 / (others + k) + 1 / most
        x = -np.log10(inverse)
        value = LN_10 * (a * n + b * x + c * n * x + d)
        slope = (b + c * n) / inverse  # of ln L by -1/X
        by_k = slope * k / (others + k) ** 2
        ones = np.ones_like(x)
        jacobian = [n * ones, x, n * x, ones]
        jacobian = [LN_10 * derivative for derivative in jacobian]
        return value, np.stack([*jacobian, by_k, slope / most], axis=1)

    def natural(self, phi_SP: Array) -> dict[str, Array]:
        a, b, c, d, log_k, log_max = np.moveaxis(phi_SP, -1, 0)
        start = 1 / (np.exp(-log_k) + np.exp(-log_max))
        return {"a": a, "b": b, "c": c, "d": d, "E_start": start, "E_max": np.exp(log_max)}

    def phi(self, natural: Mapping[str, float]) -> Array:
        straight = [natural[name] for name in "abcd"]
        log_k = -np.log(1 / natural["E_start"] - 1 / natural["E_max"])
        return np.asarray([*straight, log_k, np.log(natural["E_max"])], np.float64)

    def grid(self, x_KI: Array, log_loss: Array) -> list[list[float]]:
        level = float(log_loss.mean() / LN_10) + 0.08 * float(x_KI[0].mean())
        saturation = [float(np.log(k)) for k in (1.5, 4.0)], [float(np.log(m)) for m in (100, 500)]
        return [[-0.08], [-0.15, -0.05], [0.0, 0.01], [level], *saturation]

    def bounds(self, log_loss: Array) -> tuple[Array, Array]:
        low = np.asarray([-2.0, -2.0, -1.0, -20.0, np.log(1e-2), np.log(2.0)])
        return low, np.asarray([2.0, 2.0, 1.0, 20.0, np.log(1e3), np.log(1e6)])
