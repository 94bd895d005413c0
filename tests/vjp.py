"""Values and gradients of a function of named arrays, as records of references hold them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np


def values_and_gradients(
    function: Callable[..., jax.Array], arguments: Mapping[str, np.ndarray], cotangent: np.ndarray
) -> dict[str, np.ndarray]:
    """ "y", and "d_NAME" of every argument."""

    def run(values: Mapping[str, jax.Array], ct: jax.Array) -> dict[str, jax.Array]:
        y, pull = jax.vjp(lambda v: function(**v), values)
        return {"y": y} | {f"d_{name}": g for name, g in pull(ct)[0].items()}

    found = jax.jit(run)({k: jnp.asarray(v) for k, v in arguments.items()}, jnp.asarray(cotangent))
    return {key: np.asarray(value) for key, value in found.items()}
