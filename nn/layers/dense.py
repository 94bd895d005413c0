"""Dense layers and the transformer's feed-forward block.

Legend: B batch, T positions, D residual width, F hidden width.
"""

from __future__ import annotations

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from nn import activations, initializers
from nn.layers.dropout import Dropout
from nn.parallel import Layer, einsum, enter
from nn.parallel.weight import Initializer

LABELS = "abcghijk"


class Dense(Layer):
    """y = x W + b over the last dimension.

    features: size of the output.
    names: logical names of the kernel's two dimensions; ("embed", "mlp") splits the output over
      tensor (column), ("mlp", "embed") the input (row).
    scatter: the output leaves a tensor-parallel block: under sequence parallelism keep only this
      shard's positions (dimension 1).
    in_features: needed where x holds only a share of the input; x.shape[-1] otherwise.
    """

    features: int
    names: tuple[str | None, str | None] = ("embed", "mlp")
    bias: bool = True
    scatter: bool = False
    in_features: int | None = None
    kernel_init: Initializer = initializers.lecun_normal()
    bias_init: Initializer = initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x (..., in) -> (..., features), either possibly this shard's part."""
        shape = (self.in_features or x.shape[-1], self.features)
        kernel = self.weight("kernel", shape, self.names, self.kernel_init)
        lead = LABELS[: x.ndim - 1]
        scatter = lead[1] if self.scatter else None
        y = einsum(f"{lead}x,xy->{lead}y", x, kernel, scatter=scatter)
        if self.bias:
            # A bias along the residual width is too small to be worth gathering.
            name = None if self.names[1] == "embed" else self.names[1]
            y = y + self.weight("bias", (self.features,), (name,), self.bias_init).beside(y)
        return y


class FeedForward(Layer):
    """Two dense layers with an activation between them, or three when it is gated.

    Position-wise feed-forward of Vaswani et al. 2017, eq. 2; gated: Shazeer 2020 (GLU variants),
    act(x W_gate) * (x W_up) W_down.
    """

    hidden: int
    activation: str = "gelu_tanh"
    bias: bool = True
    dropout: float = 0.0
    train: bool = False
    kernel_init: Initializer = initializers.lecun_normal()
    down_init: Initializer = initializers.lecun_normal()

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """(B, T, D) -> (B, T, D)."""
        width = x_BTD.shape[-1]
        x_BTD = enter(x_BTD, "mlp")

        def up(name: str) -> jax.Array:
            dense = Dense(self.hidden, bias=self.bias, kernel_init=self.kernel_init, name=name)
            return checkpoint_name(dense(x_BTD), "mlp")

        act = activations.get(self.activation)
        if activations.is_gated(self.activation):
            h_BTF = act(up("gate"), up("up"))
        else:
            h_BTF = act(up("up"))
        h_BTF = Dropout(self.dropout, ("batch", "sequence", "mlp"), self.train)(h_BTF)
        return Dense(
            width,
            names=("mlp", "embed"),
            bias=self.bias,
            scatter=True,
            in_features=self.hidden,
            kernel_init=self.down_init,
            name="down",
        )(h_BTF)
