"""Predict real numbers: squared, absolute or Huber error, averaged over the targets."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from nn import losses, names
from nn.objectives.sums import Batch, Sums, Variables, apply

ERRORS = {"mse": losses.mse, "mae": losses.mae, "huber": losses.huber}

SEQUENCE: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Config:
    error: str = "mse"  # mse | mae | huber

    def __post_init__(self) -> None:
        names.lookup("objective.error", self.error, ERRORS)


def sums(
    config: Config,
    model: nn.Module,
    variables: Variables,
    batch: Batch,
    key: jax.Array,
    train: bool,
) -> tuple[Sums, Variables]:
    """Sums over this shard's examples of "loss", "mse" and "mae", in units of the targets.

    batch: inputs (B, ...), targets (B, K), mask (B,).
    """
    model = model.clone(train=train)
    out_BK, variables = apply(model, variables, batch["inputs"], key=key, train=train)
    out_BK = out_BK.astype(jnp.float32)
    mask_B = batch["mask"]
    count = jnp.sum(mask_B)

    def total(error: str) -> tuple[jax.Array, jax.Array]:
        each = ERRORS[error](out_BK, batch["targets"]).reshape(out_BK.shape[0], -1).mean(axis=1)
        return jnp.sum(each * mask_B), count

    return {"loss": total(config.error), "mse": total("mse"), "mae": total("mae")}, variables
