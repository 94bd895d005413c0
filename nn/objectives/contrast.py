"""Tell which text goes with which image, of all in the batch.

softmax: cross-entropy of finding each image's text and each text's image (Radford et al. 2021,
figure 3); sigmoid: every pair on its own is a match or not (Zhai et al. 2023, section 3.2). The
batch is the global one on any mesh: the features of the other side are gathered over the shards of
examples. Its parts cannot be computed one after another, so `rule.accumulate` must be 1; stages of
a pipeline work on parts, but all features meet after it.

Legend: B images and texts of this shard, A of all shards, E width of the common space, C classes,
T tokens.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from nn import losses, names
from nn.objectives.sums import Batch, Sums, Variables, apply
from nn.parallel import BATCH_AXES, axis_index
from nn.parallel.collectives import all_gather

SEQUENCE: tuple[str, ...] = ()
WHOLE_BATCH = True  # the loss of a batch is not the sum of that of its parts
LOSSES = dict.fromkeys(("softmax", "sigmoid"))
NEVER = -1e30  # the logit of an example that does not count


@dataclasses.dataclass(frozen=True)
class Config:
    loss: str = "softmax"  # softmax | sigmoid
    max_scale: float = 100.0  # of similarities: a larger factor counts as this

    def __post_init__(self) -> None:
        names.lookup("objective.loss", self.loss, LOSSES)
        if not self.max_scale > 0:
            raise ValueError(f"objective.max_scale={self.max_scale}: must be above 0")


def sums(
    config: Config,
    model: nn.Module,
    variables: Variables,
    batch: Batch,
    key: jax.Array,
    train: bool,
) -> tuple[Sums, Variables]:
    """Sums over this shard's examples of "loss" (nats), of "accuracy", which is that of images
    finding their text in the batch, and of "text_accuracy".

    batch: inputs (B, ...) images, tokens (B, T) int32, mask (B,). With choices (B, C, T), the texts
    of all classes, the same in every row, and labels (B,), evaluation also gives "zero_shot": the
    accuracy of images finding their class.
    """
    model = model.clone(train=train)
    (image_BE, text_BE, scale, bias), variables = apply(
        model, variables, batch["inputs"], batch["tokens"], key=key, train=train, method="features"
    )
    scale = jnp.minimum(scale, config.max_scale)
    mask_B = batch["mask"]
    count = jnp.sum(mask_B)
    mask_A = all_gather(mask_B, BATCH_AXES, 0)
    own_B = jnp.arange(mask_B.shape[0]) + axis_index(BATCH_AXES) * mask_B.shape[0]

    def logits_of(from_BE: jax.Array, to_BE: jax.Array) -> jax.Array:
        to_AE = all_gather(to_BE, BATCH_AXES, 0)
        return from_BE @ to_AE.T * scale + bias

    def total(values_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.sum(values_B * mask_B), count

    sides = [logits_of(image_BE, text_BE), logits_of(text_BE, image_BE)]
    counted = [jnp.where(mask_A[None] > 0, logits_BA, NEVER) for logits_BA in sides]
    hits = [total(losses.correct(logits_BA, own_B)) for logits_BA in counted]
    if config.loss == "softmax":
        each = [losses.softmax_cross_entropy(logits_BA, own_B) for logits_BA in counted]
        loss_B = (each[0] + each[1]) / 2
    else:
        match_BA = (jnp.arange(mask_A.shape[0])[None] == own_B[:, None]).astype(jnp.float32)
        pairs_BA = losses.binary_cross_entropy(sides[0], match_BA)
        loss_B = jnp.sum(pairs_BA * mask_A[None], axis=1)
    found = {"loss": total(loss_B), "accuracy": hits[0], "text_accuracy": hits[1]}
    if not train and "choices" in batch:
        one, choices_CT = batch["inputs"][:1], batch["choices"][0]
        features, _ = apply(
            model, variables, one, choices_CT, key=key, train=train, method="features"
        )
        found["zero_shot"] = total(losses.correct(image_BE @ features[1].T, batch["labels"]))
    return found, variables
