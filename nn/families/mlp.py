"""The multilayer perceptron: dense layers with an activation between them.

Rumelhart, Hinton & Williams 1986. Hidden layers alternate between column and row splits, so that
two of them need one sum over the tensor axis.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nn import activations, initializers, names
from nn.layers.dense import Dense
from nn.layers.dropout import Dropout
from nn.layers.norm import BatchNorm, LayerNorm
from nn.parallel import Layer

NORMS = dict.fromkeys(("none", "batch", "layer"))


@dataclasses.dataclass(frozen=True)
class Config:
    in_features: int = 64  # numbers per example; images are flattened
    features: tuple[int, ...] = (64, 64)  # hidden units of each layer
    out_features: int = 10  # classes or targets
    activation: str = "relu"
    norm: str = "none"  # none | batch | layer, before each activation
    dropout: float = 0.0  # probability, after each activation
    residual: bool = False  # add the input of each pair of hidden layers to its output (He et al.
    # 2016) where the sizes agree

    def __post_init__(self) -> None:
        for size in (self.in_features, self.out_features, *self.features):
            if size < 1:
                raise ValueError(f"model: a layer of {size} units; every layer needs at least 1")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"model.dropout={self.dropout}: must be in [0, 1)")
        names.lookup("model.norm", self.norm, NORMS)
        if activations.is_gated(self.activation):
            raise ValueError(f"model.activation={self.activation!r} is gated and needs two inputs")


class Model(Layer):
    """(B, ...) -> (B, out_features), float32 logits or targets."""

    config: Config
    dtype: Any = jnp.float32
    train: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        h = x.reshape(x.shape[0], -1).astype(self.dtype)
        if h.shape[1] != c.in_features:
            raise ValueError(
                f"model.in_features={c.in_features} but an example has {h.shape[1]} numbers"
            )
        act, width, skip = activations.get(c.activation), c.in_features, None
        for i, size in enumerate(c.features):
            # Even layers split their output over tensor, odd ones their input.
            column = i % 2 == 0
            names_in, name = ("embed", "mlp") if column else ("mlp", "embed")
            y = Dense(
                size,
                names=(names_in if i else None, name),  # examples of any width
                in_features=width,
                kernel_init=initializers.he_normal(),
                name=f"dense_{i}",
            )(h)
            split = "mlp" if column else None
            if c.norm == "batch":
                y = BatchNorm(train=self.train, split=split, name=f"norm_{i}")(y)
            elif c.norm == "layer":
                y = LayerNorm(split=split, name=f"norm_{i}")(y)
            y = Dropout(c.dropout, ("batch", split), self.train)(act(y))
            if column:
                skip = h
            elif c.residual and skip is not None and skip.shape == y.shape:
                y = y + skip
            h, width = y, size
        name = "mlp" if len(c.features) % 2 else "embed"
        out = Dense(
            c.out_features,
            names=(name if c.features else None, None),
            in_features=width,
            kernel_init=initializers.he_normal(),
            name="output",
        )(h)
        return out.astype(jnp.float32)


PRESETS: dict[str, Config] = {
    # Rumelhart et al. 1986's smallest: exclusive or by two hidden units.
    "xor": Config(in_features=2, features=(2,), out_features=2, activation="tanh"),
}


OBJECTIVES = ("classify", "regress")  # those that train it


def tiny() -> Config:
    return Config(in_features=24, features=(16, 32, 16), out_features=8)


def example(config: Config, batch: int) -> tuple[jax.Array, ...]:
    """Positional inputs of the model: examples (batch, in_features)."""
    size = batch * config.in_features
    return (jnp.linspace(-1.0, 1.0, size).reshape(batch, config.in_features),)
