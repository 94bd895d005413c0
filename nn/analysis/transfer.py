"""Whether what is tuned on a small model holds for a large one: sizes of activations, best rates.

Coordinate check (Yang et al. 2022, appendix D.1): under a right parametrisation what each module
gives is as large in a wide model as in a narrow one after some steps; under a wrong one it grows or
vanishes with the width. Transfer: the best learning rate is where it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from nn.layers.dropout import Dropout

RMS = "root_mean_square"
MODEL = "output"  # the name of what the model itself gives


def coordinates(model: nn.Module, variables: Any, *inputs: Any) -> dict[str, jax.Array]:
    """Root mean square of what each module gives, by path; of a stack, over all of its layers.

    A module that runs several times counts the last time. Works under `jax.jit`.
    """
    with nn.intercept_methods(_measure):
        _, left = model.apply(variables, *inputs, mutable=["intermediates"])
    found = {}
    for path, values in flatten_dict(left["intermediates"], sep="/").items():
        module, _, name = path.rpartition("/")
        if name == RMS:
            found[module or MODEL] = jnp.sqrt(jnp.mean(jnp.square(values[-1])))
    return found


def _measure(run: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    output = run(*args, **kwargs)
    if context.method_name != "__call__" or isinstance(context.module, Dropout):
        return output
    arrays = [x for x in jax.tree.leaves(output) if jnp.issubdtype(x.dtype, jnp.floating)]
    if arrays:
        size = jnp.sqrt(jnp.mean(jnp.square(arrays[0].astype(jnp.float32))))
        context.module.sow("intermediates", RMS, size)
    return output


def spread(values: Sequence[float]) -> float:
    """The largest over the smallest; infinite where one is 0 or no number."""
    sizes = np.abs(np.asarray(values, np.float64))
    if not np.isfinite(sizes).all() or sizes.min() == 0:
        return float("inf")
    return float(sizes.max() / sizes.min())


@dataclasses.dataclass(frozen=True)
class Optimum:
    """The best learning rate of one model. edge: it is the first or last of those tried, so that
    the best of all may lie outside."""

    rate: float
    loss: float
    edge: bool


def optimum(rates: Sequence[float], losses: Sequence[float]) -> Optimum:
    """Where the parabola through the best rate and its two neighbours is lowest, over log2(rate).

    A loss that is no number is that of a run that diverged, which ends the grid as an edge does.
    Raises ValueError for fewer than three rates, rates out of order, or nothing but diverged runs.
    """
    x, y = np.log2(np.asarray(rates, np.float64)), np.asarray(losses, np.float64)
    if len(x) < 3 or len(x) != len(y) or not (np.diff(x) > 0).all():
        raise ValueError(f"rates {tuple(rates)}: at least three, in increasing order")
    y = np.where(np.isfinite(y), y, np.inf)
    best = int(np.argmin(y))
    if np.isinf(y[best]):
        raise ValueError("every run diverged: lower rates are needed")
    near = slice(best - 1, best + 2)
    if best in (0, len(x) - 1) or np.isinf(y[near]).any():
        return Optimum(float(2 ** x[best]), float(y[best]), best in (0, len(x) - 1))
    a, b, c = np.polyfit(x[near] - x[best], y[near], 2)
    if a <= 0:  # all three are equal
        return Optimum(float(2 ** x[best]), float(y[best]), False)
    return Optimum(float(2 ** (x[best] - b / (2 * a))), float(c - b * b / (4 * a)), False)


def slope(widths: Sequence[float], rates: Sequence[float]) -> float:
    """By how many doublings the best rate moves when the width doubles, by least squares.

    Raises ValueError for fewer than two widths.
    """
    if len(set(widths)) < 2:
        raise ValueError(f"widths {tuple(widths)}: at least two different ones")
    x, y = (np.log2(np.asarray(values, np.float64)) for values in (widths, rates))
    return float(np.polyfit(x, y, 1)[0])
