"""The sharded einsum, and the two ends of a region whose sequence is split over `tensor`.

Column and row parallelism (Shoeybi et al. 2019) need no code of their own: a weight split
along an output dimension gives a split output, a weight split along a contracted one gives
partial products that are summed here. Sequence parallelism (Korthikanti et al. 2022) turns that
sum into a reduce-scatter along the sequence.

Legend: B batch, T positions, D residual width.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from nn.parallel import collectives
from nn.parallel.mesh import current_rules
from nn.parallel.weight import Weight, bound_axis


def einsum(equation: str, x: jax.Array, weight: Weight, scatter: str | None = None) -> jax.Array:
    """`jnp.einsum(equation, x, weight)` for a weight that may be split over the mesh.

    Args:
      equation: explicit, two operands, for example "btd,df->btf".
      x: activations; their dtype is the dtype of the product.
      weight: its fsdp dimensions are gathered; a contracted split dimension is summed over.
      scatter: label of the output's sequence dimension. Under sequence parallelism the output
        then holds this shard's positions only.
    """
    labels, output = equation.split(",")[1].split("->")
    y = _product(equation, x, weight, weight.bare(like=x))
    summed = [
        axis
        for dim, label in enumerate(labels)
        if label not in output and (axis := weight.split_over(dim)) is not None
    ]
    dim = output.index(scatter) if scatter is not None and sequence_is_split() else None
    return _finish(y, summed, dim)


def _product(equation: str, x: jax.Array, weight: Weight, bare: jax.Array) -> jax.Array:
    """x times a weight whose own part is gathered already, without sums over the mesh."""
    y = jnp.einsum(equation, x, bare)
    return y if weight.low_rank is None else y + weight.low_rank.einsum(equation, x)


def _finish(y: jax.Array, summed: list[str], dim: int | None) -> jax.Array:
    """Add partial products up over `summed`; keep this shard's part of dimension `dim`."""
    for axis in summed:
        if axis == "tensor" and dim is not None:
            y = collectives.psum_scatter(y, axis, dim)
        else:
            y = collectives.psum(y, axis)
    if dim is not None and "tensor" not in summed:
        y = collectives.local_slice(y, "tensor", dim)
    return y


def einsum_parts(
    equation: str, x: jax.Array, weights: Sequence[Weight], dim: int
) -> list[jax.Array]:
    """`einsum(equation, x, w)` for each of some weights as one product with all of them.

    dim: of the weights, along which they lie side by side; they differ in nothing else, and no
      dimension that the product sums over is split.
    """
    labels, output = equation.split(",")[1].split("->")
    if x.shape[1] == 1:  # one token each: laying weights side by side costs more than it saves
        return [_product(equation, x, weight, weight.bare(like=x)) for weight in weights]
    # All are cast to the axes of any before they are gathered: see `Weight.whole`.
    held = {axis for weight in weights for axis in collectives.varying(weight.value)} - {"fsdp"}
    like = collectives.vary(x, held)
    whole = [weight.bare(like) for weight in weights]
    y = jnp.einsum(equation, x, jnp.concatenate(whole, dim))
    # A split, whose transpose is one concatenation; that of slices is a sum of padded arrays.
    parts = lax.split(y, [w.shape[dim] for w in whole], axis=output.index(labels[dim]))
    return [
        part if weight.low_rank is None else part + weight.low_rank.einsum(equation, x)
        for part, weight in zip(parts, weights, strict=True)
    ]


def sequence_is_split() -> bool:
    """Whether, between blocks, the sequence is split over `tensor` here."""
    return current_rules().sequence_parallel and bool(collectives.bound(["tensor"]))


def enter(x_BTD: jax.Array, name: str) -> jax.Array:
    """Gather the positions before a block whose weights are split along `name`."""
    if not sequence_is_split():
        return x_BTD
    return collectives.all_gather(x_BTD, "tensor", 1, same=bound_axis(name) != "tensor")


def leave(x_BTD: jax.Array) -> jax.Array:
    """Keep this shard's positions of a value that holds all of them."""
    return collectives.local_slice(x_BTD, "tensor", 1) if sequence_is_split() else x_BTD


def leave_sum(x_BTD: jax.Array, summed: str | None) -> jax.Array:
    """`leave`, for a value that is partial sums over the mesh axis `summed`."""
    return _finish(x_BTD, [summed] if summed else [], 1 if sequence_is_split() else None)


def sequence_axes() -> tuple[str, ...]:
    """The mesh axes that split the positions between blocks."""
    return ("context", "tensor") if sequence_is_split() else ("context",)
