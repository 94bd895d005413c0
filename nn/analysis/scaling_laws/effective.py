"""Chinchilla's law in effective parameters and tokens: what repetition or rounding leaves of them.

    repeated (Muennighoff et al. 2023, arXiv:2305.16264, equations 5 and 6)
        D' = U_D [1 + R_D* (1 - e^(-R_D/R_D*))],  R_D = D/U_D - 1, U_D unique tokens
        N' = U_N [1 + R_N* (1 - e^(-R_N/R_N*))],  R_N = N/U_N - 1
        U_N = min(N, the N for which U_D tokens are optimal) = G (G U_D)^(beta/alpha)
        with G = (alpha A / beta B)^(1/(alpha + beta)). At most 4 epochs are nearly as good as new.
    precision (Kumar et al. 2024, arXiv:2411.04330, equation 4)
        N' = N (1 - e^(-P_w/gamma_w)) (1 - e^(-P_a/gamma_a)) (1 - e^(-P_kv/gamma_kv))
        with P bits of weights, activations and the cache of keys and values during training.

Legend as in `forms.py`: S sets of parameters, P parameters, I runs, K features.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nn.analysis.scaling_laws.forms import Form, column, log_sum_exp
from nn.analysis.scaling_laws.table import Array


class Repeated(Form):
    """L = E + A N'^-alpha + B D'^-beta with the effective N' and D' of repeated data."""

    name = "repeated"
    equation = "L = E + A/N'^alpha + B/D'^beta, N' and D' effective under repetition"
    columns = ("N", "D", "unique_tokens")
    parameters = ("E", "A", "alpha", "B", "beta", "R_D", "R_N")
    logs = ("E", "A", "B", "R_D", "R_N")
    shears = ()  # U_N ties the four coefficients together: centring would not decouple them

    def features(self, columns: Mapping[str, Array]) -> Array:
        """(3, I): ln N, ln U_D and the repetitions R_D; U_D is D itself where more is unique."""
        unique = np.minimum(columns["unique_tokens"], columns["D"])
        return np.stack([np.log(columns["N"]), np.log(unique), columns["D"] / unique - 1])

    def value_and_jacobian(self, phi_SP: Array, x_KI: Array) -> tuple[Array, Array]:
        e, a, alpha, b, beta, r_D, r_N = (column(phi_SP, i) for i in range(7))
        log_N, log_U, repeats = x_KI
        gain_D, _, by_r_D = _saturating(repeats, np.exp(r_D))
        log_D = log_U + gain_D
        total = alpha + beta
        log_G = (np.log(alpha) + a - np.log(beta) - b) / total
        log_optimal = log_G * (1 + beta / alpha) + beta / alpha * log_U
        limited = log_optimal < log_N
        log_UN = np.where(limited, log_optimal, log_N)
        excess = np.expm1(np.minimum(log_N - log_UN, 100.0))  # e^100 times too many is enough
        gain_N, by_excess, by_r_N = _saturating(excess, np.exp(r_N))
        by_UN = np.where(limited, 1 - by_excess * (1 + excess), 0.0)
        terms = np.empty((3, len(phi_SP), x_KI.shape[-1]))
        terms[0] = e
        terms[1] = a - alpha * (log_UN + gain_N)
        terms[2] = b - beta * log_D
        value, (p_E, p_N, p_D) = log_sum_exp(terms)
        pull = -p_N * alpha * by_UN  # of ln L by ln U_N
        scale = (1 + beta / alpha) / total  # of ln U_N by (alpha + beta) ln G
        by_alpha = scale * (1 / alpha - log_G) - beta / alpha**2 * (log_G + log_U)
        by_beta = scale * (-1 / beta - log_G) + (log_G + log_U) / alpha
        jacobian = [
            p_E,
            p_N + pull * scale,
            -p_N * (log_UN + gain_N) + pull * by_alpha,
            p_D - pull * scale,
            -p_D * log_D + pull * by_beta,
            -p_D * beta * by_r_D,
            -p_N * alpha * by_r_N,
        ]
        return value, np.stack(jacobian, axis=1)

    def grid(self, x_KI: Array, log_loss: Array) -> list[list[float]]:
        floor = float(log_loss.min())
        exponents = [0.2, 0.4]
        middle = [floor + np.log(0.25) + 0.3 * float(np.mean(x)) for x in x_KI[:2]]
        coefficients = [[m - 1.0, m + 1.0] for m in middle]
        repeats = [float(np.log(5.0)), float(np.log(20.0))]
        return [
            [floor - 0.5],
            coefficients[0],
            exponents,
            coefficients[1],
            exponents,
            repeats,
            repeats,
        ]

    def bounds(self, log_loss: Array) -> tuple[Array, Array]:
        low, high = super().bounds(log_loss)
        low[[2, 4]] = 1e-3  # both divide
        low[5:], high[5:] = np.log(1e-2), np.log(1e4)
        return low, high


def _saturating(repeats: Array, half: Array) -> tuple[Array, Array, Array]:
    """ln [1 + R* (1 - e^(-R/R*))], and its derivatives by R and by ln R*."""
    ratio = repeats / half
    decay = np.exp(-ratio)
    whole = 1 - half * np.expm1(-ratio)
    return np.log(whole), decay / whole, (half * -np.expm1(-ratio) - repeats * decay) / whole


class Precision(Form):
    """L = E + A N'^-alpha + B D^-beta with the parameters N' that low precision leaves."""

    name = "precision"
    equation = "L = E + A/N'^alpha + B/D^beta, N' = N prod_x (1 - exp(-P_x/gamma_x))"
    columns = ("N", "D", "bits_weights", "bits_activations", "bits_kv")
    parameters = ("E", "A", "alpha", "B", "beta", "gamma_w", "gamma_a", "gamma_kv")
    logs = ("E", "A", "B", "gamma_w", "gamma_a", "gamma_kv")

    def features(self, columns: Mapping[str, Array]) -> Array:
        """(5, I): ln N, ln D and the three numbers of bits."""
        bits = [columns[name] for name in self.columns[2:]]
        return np.stack([np.log(columns["N"]), np.log(columns["D"]), *bits])

    def value_and_jacobian(self, phi_SP: Array, x_KI: Array) -> tuple[Array, Array]:
        e, a, alpha, b, beta = (column(phi_SP, i) for i in range(5))
        log_N = x_KI[0] + np.zeros((len(phi_SP), 1))
        by_gamma = []
        for i in range(3):
            ratio = x_KI[2 + i] / np.exp(column(phi_SP, 5 + i))
            log_N = log_N + np.log(-np.expm1(-ratio))
            by_gamma.append(ratio * np.exp(-ratio) / np.expm1(-ratio))
        terms = np.empty((3, len(phi_SP), x_KI.shape[-1]))
        terms[0] = e
        terms[1] = a - alpha * log_N
        terms[2] = b - beta * x_KI[1]
        value, (p_E, p_N, p_D) = log_sum_exp(terms)
        jacobian = [p_E, p_N, -p_N * log_N, p_D, -p_D * x_KI[1]]
        return value, np.stack([*jacobian, *(-p_N * alpha * by for by in by_gamma)], axis=1)

    def grid(self, x_KI: Array, log_loss: Array) -> list[list[float]]:
        floor = float(log_loss.min())
        coefficients = [floor + np.log(share) for share in (0.1, 0.5)]
        exponents = [0.2, 0.6]
        bits = [[0.0, 1.0], [0.7], [0.7]]
        return [coefficients, coefficients, exponents, coefficients, exponents, *bits]

    def bounds(self, log_loss: Array) -> tuple[Array, Array]:
        low, high = super().bounds(log_loss)
        low[5:], high[5:] = np.log(0.05), np.log(50.0)
        return low, high
