"""Choose one class of several: softmax cross-entropy over the model's outputs.

A model may leave the classes of its logits split over the mesh, and then has the property
`classes_axis`: the mesh axis where it is traced, or None.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from nn import losses
from nn.objectives.sums import Batch, Sums, Variables, apply
from nn.parallel import axis_size

SEQUENCE: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Config:
    label_smoothing: float = 0.0  # probability spread over the classes (Szegedy et al. 2016)

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"objective.label_smoothing={self.label_smoothing}: must be in [0, 1)")


def sums(
    config: Config,
    model: nn.Module,
    variables: Variables,
    batch: Batch,
    key: jax.Array,
    train: bool,
) -> tuple[Sums, Variables]:
    """Sums over this shard's examples of "loss" (nats), "accuracy" (top-1), and, where there are
    more than five classes, "top5_accuracy": the label is among the five likeliest.

    batch: inputs (B, ...), labels (B,) int32, mask (B,) float32; after mixup also
    labels_mixed (B,) and mix (B,), the weight of `labels` (Zhang et al. 2018).
    """
    model = model.clone(train=train)
    logits_BC, variables = apply(model, variables, batch["inputs"], key=key, train=train)
    logits_BC = logits_BC.astype(jnp.float32)
    labels_B, mask_B = batch["labels"], batch["mask"]
    split: str | None = getattr(model, "classes_axis", None)

    def loss(labels: jax.Array) -> jax.Array:
        return losses.softmax_cross_entropy(
            logits_BC, labels, label_smoothing=config.label_smoothing, axis_name=split
        )

    loss_B = loss(labels_B)
    if "labels_mixed" in batch:
        mix_B = batch["mix"]
        loss_B = mix_B * loss_B + (1 - mix_B) * loss(batch["labels_mixed"])
    rank_B = losses.rank(logits_BC, labels_B, axis_name=split)
    count = jnp.sum(mask_B)

    def total(values_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.sum(values_B * mask_B), count

    result = {"loss": total(loss_B), "accuracy": total(rank_B == 0)}
    if logits_BC.shape[1] * axis_size(split or ()) > 5:
        result["top5_accuracy"] = total(rank_B < 5)
    return result, variables
