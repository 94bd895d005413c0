"""A stack of equal layers as one scan over depth: compile time does not grow with it.

The weights of all layers are stacked along a first dimension of the logical name "layers". A layer
is a module `(carry, layer, *context) -> (carry, aux)`; `layer` is its number, from 0, and noise
inside it is that of its number. `aux` is a dict of scalars about this layer, {} for most: "loss" is
added to the loss of every example (the balance of experts, say), the others are metrics. The stack
returns their sums over its layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nn import names
from nn.parallel import axis_index, axis_size, bound_axis
from nn.parallel.random import place

# What the backward pass finds instead of computing it again.
REMAT: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "block": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def stacked(
    block: type[nn.Module], length: int, context: int, remat: str = "none", unroll: int = 1
) -> Callable[..., nn.Module]:
    """A class like `block` that is `length` layers of it.

    context: number of arguments after `layer`, the same for all layers.
    remat: a key of `REMAT`. unroll: layers per iteration of the loop; 0: all of them.
    """
    policy = names.lookup("remat", remat, REMAT)
    layer_class = _placed(block)
    if policy is not None:
        layer_class = nn.remat(layer_class, policy=policy, prevent_cse=False)
    local = length // axis_size(bound_axis("layers") or ())
    return nn.scan(
        layer_class,
        variable_axes={"params": 0, "intermediates": 0, "router": 0},
        split_rngs={"params": True, "dropout": False},
        in_axes=(0, *(nn.broadcast,) * context),
        length=local,
        unroll=unroll or local,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )


def layer_numbers(length: int) -> jax.Array:
    """Numbers of the layers that this stage of `pipe` holds."""
    axis = bound_axis("layers") or ()
    local = length // axis_size(axis)
    return axis_index(axis) * local + jnp.arange(local)


def _placed(block: type[nn.Module]) -> type[nn.Module]:
    """The class whose noise is that of the layer."""

    class Placed(block):  # type: ignore[misc, valid-type]
        def __call__(self, carry: Any, layer: jax.Array, *context: Any) -> Any:
            with place(layer=layer):
                return super().__call__(carry, layer, *context)

    Placed.__name__ = block.__name__
    return Placed
