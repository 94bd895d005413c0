"""What a law says: ln L and its derivatives, for many sets of parameters at once.

    chinchilla        L = E + A N^-alpha + B D^-beta                  Hoffmann et al. 2022
    shared_exponent   the same with alpha = beta                      Muennighoff et al. 2023
    power             L = E + A C^-alpha: the loss of optimal runs    Kaplan 2020, with an offset
    kaplan            L = [(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D Kaplan et al. 2020, eq. 1.5
    repeated, precision: `effective.py`     moe, routed: `experts.py`

A form works in coordinates phi in which its parameters are free numbers: coefficients by their
logarithm, exponents as they are. `features` are what it reads of a run (mostly logarithms). All
functions are batched: S sets of parameters, P parameters, I runs, K features; x_KI may also be
(K, S, I), with runs of their own for every set.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from nn.analysis.scaling_laws.table import Array

# Bounds of exponents, and of logarithms of coefficients: wide enough that only a fit which has
# nothing to hold on to reaches them.
EXPONENT = (0.0, 4.0)
LOGARITHM = (-80.0, 80.0)
LEAST_E = 1e-4  # of the lowest loss; pin E = 0 for none at all


class Form(abc.ABC):
    """A law. Subclasses give the names and `value_and_jacobian`; the rest is shared."""

    name: ClassVar[str]
    equation: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]  # of the View
    parameters: ClassVar[tuple[str, ...]]  # natural names, in the order of phi
    logs: ClassVar[tuple[str, ...]]  # parameters that phi holds by their logarithm
    # (row, column, feature): phi_row += centre_feature phi_column takes a coefficient from centred
    # features to the given ones; the exponent is its own.
    shears: ClassVar[tuple[tuple[str, str, int], ...]] = ()

    @property
    def pinnable(self) -> tuple[str, ...]:
        """Parameters that are one coordinate of phi each, so that a fit can hold them fixed."""
        return self.parameters

    def features(self, columns: Mapping[str, Array]) -> Array:
        """(K, I): logarithms of the columns, unless a form needs something else."""
        return np.log(np.stack([columns[name] for name in self.columns]))

    @abc.abstractmethod
    def value_and_jacobian(self, phi_SP: Array, x_KI: Array) -> tuple[Array, Array]:
        """ln L, (S, I), and its derivatives by phi, (S, P, I)."""

    def starts(self, x_KI: Array, log_loss: Array) -> Array:
        """(S, P) starting points for centred features; every combination of a few values each."""
        grids = np.meshgrid(*self.grid(x_KI, log_loss), indexing="ij")
        return np.stack([grid.reshape(-1) for grid in grids], axis=1)

    @abc.abstractmethod
    def grid(self, x_KI: Array, log_loss: Array) -> list[list[float]]:
        """Starting values of each parameter, in the order of phi."""

    def bounds(self, log_loss: Array) -> tuple[Array, Array]:
        """(P,), (P,): lower and upper bounds of phi. E stays above LEAST_E of the lowest loss."""
        low = [LOGARITHM[0] if p in self.logs else EXPONENT[0] for p in self.parameters]
        high = [LOGARITHM[1] if p in self.logs else EXPONENT[1] for p in self.parameters]
        if "E" in self.parameters:
            e = self.parameters.index("E")
            low[e], high[e] = log_loss.min() + np.log(LEAST_E), log_loss.max()
        return np.asarray(low), np.asarray(high)

    def shear(self, phi_SP: Array, centre_K: Array, sign: float = 1.0) -> Array:
        """phi of centred features -> phi of the given ones (sign = -1: back)."""
        phi = np.array(phi_SP, np.float64)
        for row, column, feature in self.shears:
            r, c = self.parameters.index(row), self.parameters.index(column)
            phi[..., r] += sign * centre_K[feature] * phi[..., c]
        return phi

    def natural(self, phi_SP: Array) -> dict[str, Array]:
        """Parameters by name, each (S,), from phi of uncentred features."""
        return {
            name: np.exp(phi_SP[..., i]) if name in self.logs else phi_SP[..., i]
            for i, name in enumerate(self.parameters)
        }

    def phi(self, natural: Mapping[str, float]) -> Array:
        """(P,) from parameters by name, the inverse of `natural`. E = 0 gives -inf."""
        with np.errstate(divide="ignore"):
            values = [
                np.log(natural[name]) if name in self.logs else natural[name]
                for name in self.parameters
            ]
        return np.asarray(values, np.float64)

    def loss(self, natural: Mapping[str, float], **columns: float | Array) -> Array:
        """L, (I,), of runs by their columns: `Chinchilla().loss(HOFFMANN, N=7e10, D=1.4e12)`."""
        given = np.broadcast_arrays(*(np.atleast_1d(columns[name]) for name in self.columns))
        x_KI = self.features(dict(zip(self.columns, np.asarray(given, np.float64), strict=True)))
        return np.exp(self.value_and_jacobian(self.phi(natural)[None], x_KI)[0][0])


def log_sum_exp(terms_TSI: Array) -> tuple[Array, Array]:
    """ln of the sum over terms, (S, I), and each term's share of the sum, (T, S, I)."""
    highest = terms_TSI.max(axis=0)
    shares = np.exp(terms_TSI - highest)
    total = shares.sum(axis=0)
    shares /= total
    return highest + np.log(total), shares


def column(phi_SP: Array, index: int) -> Array:
    """One parameter of every set, (S, 1), to meet runs (I,)."""
    return phi_SP[:, index, None]


def spread(values: Array) -> float:
    """Largest less smallest, and at least 1: the scale on which an exponent matters."""
    return max(float(np.ptp(values)), 1.0)


class Chinchilla(Form):
    """L = E + A N^-alpha + B D^-beta."""

    name = "chinchilla"
    equation = "L = E + A/N^alpha + B/D^beta"
    columns = ("N", "D")
    parameters = ("E", "A", "alpha", "B", "beta")
    logs = ("E", "A", "B")
    shears = (("A", "alpha", 0), ("B", "beta", 1))

    def value_and_jacobian(self, phi_SP: Array, x_KI: Array) -> tuple[Array, Array]:
        e, a, alpha, b, beta = (column(phi_SP, i) for i in range(5))
        terms = np.empty((3, len(phi_SP), x_KI.shape[-1]))
        terms[0] = e
        terms[1] = a - alpha * x_KI[0]
        terms[2] = b - beta * x_KI[1]
        value, (p_E, p_N, p_D) = log_sum_exp(terms)
        return value, np.stack([p_E, p_N, -p_N * x_KI[0], p_D, -p_D * x_KI[1]], axis=1)

    def grid(self, x_KI: Array, log_loss: Array) -> list[list[float]]:
        floor = float(log_loss.min())
        coefficients = [floor + np.log(share) for share in (0.1, 0.5)]
        exponents = [0.1, 0.4, 1.0]
        return [coefficients, coefficients, exponents, coefficients, exponents]


class SharedExponent(Form):
    """L = E + A N^-alpha + B D^-alpha."""

    name = "shared_exponent"
    equation = "L = E + A/N^alpha + B/D^alpha"
    columns = ("N", "D")
    parameters = ("E", "A", "B", "alpha")
    logs = ("E", "A", "B")
    shears = (("A", "alpha", 0), ("B", "alpha", 1))

    def value_and_jacobian(self, phi_SP: Array, x_KI: Array) -> tuple[Array, Array]:
        e, a, b, alpha = (column(phi_SP, i) for i in range(4))
        terms = np.empty((3, len(phi_SP), x_KI.shape[-1]))
        terms[0] = e
        terms[1] = a - alpha * x_KI[0]
        terms[2] = b - alpha * x_KI[1]
        value, (p_E, p_N, p_D) = log_sum_exp(terms)
        return value, np.stack([p_E, p_N, p_D, -p_N * x_KI[0] - p_D * x_KI[1]], axis=1)

    def grid(self, x_KI: Array, log_loss: Array) -> list[list[float]]:
        floor = float(log_loss.min())
        coefficients = [floor + np.log(share) for share in (0.1, 0.3, 0.6)]
        return [coefficients[::2], coefficients, coefficients, [0.1, 0.3, 0.6, 1.0]]


class Power(Form):
    """L = E + A C^-alpha."""

    name = "power"
    equation = "L = E + A/C^alpha"
    columns = ("C",)
    parameters = ("E", "A", "alpha")
    logs = ("E", "A")
    shears = (("A", "alpha", 0),)

    def value_and_jacobian(self, phi_SP: Array, x_KI: Array) -> tuple[Array, Array]:
        e, a, alpha = (column(phi_SP, i) for i in range(3))
        terms = np.empty((2, len(phi_SP), x_KI.shape[-1]))
        terms[0] = e
        terms[1] = a - alpha * x_KI[0]
        value, (p_E, p_C) = log_sum_exp(terms)
        return value, np.stack([p_E, p_C, -p_C * x_KI[0]], axis=1)

    def grid(self, x_KI: Array, log_loss: Array) -> list[list[float]]:
        floor = float(log_loss.min())
        coefficients = [floor + np.log(share) for share in (0.05, 0.25, 0.5, 0.95)]
        return [coefficients, coefficients[:3], [0.02, 0.05, 0.1, 0.2, 0.4, 0.8]]


class Kaplan(Form):
    """L = [(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D, without an irreducible part.

    phi = (alpha_N ln N_c, alpha_N, alpha_D ln D_c, alpha_D): then each of the two terms alone is a
    straight line in ln N or ln D.
    """

    name = "kaplan"
    equation = "L = [(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D"
    columns = ("N", "D")
    parameters = ("N_c", "alpha_N", "D_c", "alpha_D")
    logs = ("N_c", "D_c")
    shears = (("N_c", "alpha_N", 0), ("D_c", "alpha_D", 1))

    @property
    def pinnable(self) -> tuple[str, ...]:
        return ("alpha_N", "alpha_D")

    def value_and_jacobian(self, phi_SP: Array, x_KI: Array) -> tuple[Array, Array]:
        n, alpha_N, d, alpha_D = (column(phi_SP, i) for i in range(4))
        terms = np.empty((2, len(phi_SP), x_KI.shape[-1]))
        terms[0] = (n - alpha_N * x_KI[0]) / alpha_D
        terms[1] = (d - alpha_D * x_KI[1]) / alpha_D
        inner, (p_N, p_D) = log_sum_exp(terms)
        by_alpha_D = inner - p_N * terms[0] - p_D * (d / alpha_D)
        return alpha_D * inner, np.stack([p_N, -p_N * x_KI[0], p_D, by_alpha_D], axis=1)

    def natural(self, phi_SP: Array) -> dict[str, Array]:
        n, alpha_N, d, alpha_D = np.moveaxis(phi_SP, -1, 0)
        named = {"N_c": np.exp(n / alpha_N), "alpha_N": alpha_N}
        return {**named, "D_c": np.exp(d / alpha_D), "alpha_D": alpha_D}

    def phi(self, natural: Mapping[str, float]) -> Array:
        n = natural["alpha_N"] * np.log(natural["N_c"])
        d = natural["alpha_D"] * np.log(natural["D_c"])
        return np.asarray([n, natural["alpha_N"], d, natural["alpha_D"]], np.float64)

    def grid(self, x_KI: Array, log_loss: Array) -> list[list[float]]:
        middle = float(np.median(log_loss))
        coefficients = [middle - 1.0, middle - 0.4, middle]
        return [coefficients, [0.03, 0.1, 0.3], coefficients, [0.05, 0.2]]

    def bounds(self, log_loss: Array) -> tuple[Array, Array]:
        low, high = super().bounds(log_loss)
        low[1] = low[3] = 1e-3  # both divide
        return low, high
