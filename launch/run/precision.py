"""Which number format parameters, activations and sums have: policies by name.

Whatever the policy, softmax, norms, losses and the sums over the mesh of a loss are float32, and so
are those of gradients unless `mesh.reduce_dtype` says otherwise.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from nn import names


@dataclasses.dataclass(frozen=True)
class Precision:
    """The formats of one policy.

    loss_scale: initial factor of the loss, which then adapts: float16 gradients underflow
      without one (Micikevicius et al. 2018). 1: none is needed.
    stochastic_rounding: updates of the parameters are rounded up or down at random, in
      proportion, because most are smaller than half a unit in the last place of a bfloat16.
    """

    name: str
    param_dtype: Any
    compute_dtype: Any
    loss_scale: float = 1.0
    stochastic_rounding: bool = False


POLICIES = {
    policy.name: policy
    for policy in (
        Precision("float32", jnp.float32, jnp.float32),
        Precision("bfloat16", jnp.float32, jnp.bfloat16),
        Precision("float16", jnp.float32, jnp.float16, loss_scale=2.0**15),
        Precision("bfloat16_params", jnp.bfloat16, jnp.bfloat16, stochastic_rounding=True),
    )
}
AUTO = "auto"


def check(policy: str) -> None:
    """ValueError, with what there is instead, unless `policy` is a policy."""
    if policy == "float8":
        raise ValueError(
            f"precision.policy='float8' is not available: choose from "
            f"{', '.join([AUTO, *POLICIES])}; nearest: 'bfloat16'"
        )
    names.lookup("precision.policy", policy, {AUTO: None, **POLICIES})


def resolve(policy: str, platform: str | None = None) -> Precision:
    """The formats of `policy`; "auto" is bfloat16 on accelerators and float32 on CPU.

    Args:
      platform: "cpu", "gpu" or "tpu"; that of the default devices when None.
    Raises:
      ValueError: no such policy.
    """
    check(policy)
    if policy != AUTO:
        return POLICIES[policy]
    return POLICIES["float32" if (platform or jax.default_backend()) == "cpu" else "bfloat16"]
