"""Weights that are born with the logical names of their dimensions.

A layer asks for a weight by its global shape. Outside `shard_map` (initialisation, one device)
it gets all of it; inside, its local share. Either way it gets a `Weight`, which carries the
names, so that the sharded einsum knows what to gather and what to sum.
"""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from nn.parallel import collectives
from nn.parallel.mesh import REPLICABLE, Rules, current_rules, weight_spec

Names = tuple[str | None, ...]
Initializer = Callable[[jax.Array, Sequence[int]], jax.Array]


class Named(struct.PyTreeNode, nn.meta.AxisMetadata[Any]):
    """A value with one logical name (or None) per dimension, as stored in a variables tree.

    stddev: of the distribution that the value was drawn from; None where it was not drawn.
    """

    value: Any
    names: Names = struct.field(pytree_node=False)
    stddev: float | None = struct.field(pytree_node=False, default=None)

    def unbox(self) -> Any:
        return self.value

    def replace_boxed(self, val: Any) -> Named:
        return self.replace(value=val)

    def add_axis(self, index: int, params: Mapping[Any, Any]) -> Named:
        name = params[nn.PARTITION_NAME]
        return self.replace(names=(*self.names[:index], name, *self.names[index:]))

    def remove_axis(self, index: int, params: Mapping[Any, Any]) -> Named:
        return self.replace(names=(*self.names[:index], *self.names[index + 1 :]))


def bound_axis(name: str | None, size: int | None = None) -> str | None:
    """The mesh axis that splits a logical dimension here, or None.

    size: global, of a dimension that every shard holds whole where it does not divide
      (`nn.parallel.mesh.REPLICABLE`).
    """
    axis = current_rules().axis(name)
    if axis is None or not collectives.bound([axis]):
        return None
    if size is not None and name in REPLICABLE and size % collectives.axis_size(axis):
        return None
    return axis


@dataclasses.dataclass(frozen=True)
class Weight:
    """The local share of a weight. Lives inside one trace.

    axes: per dimension, the mesh axis that splits it here.
    low_rank: factors whose product is added to the value, or None.
    """

    value: jax.Array
    axes: tuple[str | None, ...]
    low_rank: LowRank | None = None

    def whole(self, like: jax.Array) -> jax.Array:
        """The weight with its fsdp dimensions gathered, in the dtype of `like`."""
        bare = self.bare(like)
        return bare if self.low_rank is None else bare + self.low_rank.whole(like)

    def bare(self, like: jax.Array) -> jax.Array:
        """`whole` without the factors.

        The share is cast to the axes of `like` before it is gathered, so that the transpose is
        a reduce-scatter over fsdp followed by a sum of the *share* over the other axes. What is
        gathered has the dtype of `like`, what is summed that of `Rules.reduce_dtype`.
        """
        x = self._among(like)
        dims = [d for d, axis in enumerate(self.axes) if axis == "fsdp"]
        if not dims:
            return x.astype(like.dtype)
        same = "fsdp" not in collectives.varying(like)
        if x.dtype == like.dtype:
            return collectives.all_gather(x, "fsdp", dims[0], same)
        return _gather_narrow(x, like.dtype, dims[0], same)

    def gathered(self, like: jax.Array) -> Weight:
        """The weight with its fsdp dimensions gathered once, for a loop that uses it often.

        It is wide again, so that the loop adds its gradient up in the dtype of the sums; a compiler
        sees that the way there and back leaves the narrow value.
        """
        axes = tuple(None if axis == "fsdp" else axis for axis in self.axes)
        value = self.bare(like).astype(sum_dtype(like.dtype))
        return Weight(value, axes, self.low_rank and self.low_rank.gathered(like))

    def beside(self, y: jax.Array) -> jax.Array:
        """The value in the dtype of y, ready to be added to its last dimensions."""
        lead = (1,) * (y.ndim - self.value.ndim)
        return self._among(y).astype(y.dtype).reshape(lead + self.value.shape)

    def _among(self, like: jax.Array) -> jax.Array:
        """The share on the axes of `like`, in the dtype in which its gradient is summed there."""
        return spread(self.value, collectives.varying(like), like.dtype)

    def split_over(self, dim: int) -> str | None:
        """The mesh axis, fsdp aside, over which a dimension stays split."""
        axis = self.axes[dim]
        return None if axis == "fsdp" else axis


@dataclasses.dataclass(frozen=True)
class LowRank:
    """scale * a b, which is added to a weight (Hu et al. 2021, LoRA, section 4.1).

    A weight (*stack, *inputs, *outputs) has a (*stack, *inputs, rank) and b (*stack, rank,
    *outputs). Each is split as the weight is, the rank never: the product of a shard's shares is
    its share of the product, so that no mesh needs code of its own. In a product with activations
    the weight itself is not touched: x W + scale (x a) b. That makes neither a copy of W nor its
    gradient, whose sums over the mesh would be as large as those of full training.

    stack: number of dimensions along which whole weights are stacked.
    """

    a: Weight
    b: Weight
    scale: jax.Array
    stack: int

    def whole(self, like: jax.Array) -> jax.Array:
        """scale * a b, with its fsdp dimensions gathered, in the dtype of `like`."""
        product = stacked_product(self.a.whole(like), self.b.whole(like), self.stack)
        return product * self.scale.astype(like.dtype)

    def gathered(self, like: jax.Array) -> LowRank:
        return dataclasses.replace(self, a=self.a.gathered(like), b=self.b.gathered(like))

    def einsum(self, equation: str, x: jax.Array) -> jax.Array:
        """`jnp.einsum(equation, x, self.whole(x))` by way of the rank where that is possible.

        It is where the product sums over all inputs, or all outputs, and over nothing else.
        """
        left, output = equation.split("->")
        of_x, labels = left.split(",")
        rank = next(letter for letter in string.ascii_letters if letter not in equation)
        cut = self.a.value.ndim - 1
        inputs, outputs = labels[self.stack : cut], labels[cut:]
        pairs = [
            (self.a, f"{labels[:cut]}{rank}"),
            (self.b, f"{labels[: self.stack]}{rank}{outputs}"),
        ]
        summed = {label for label in labels if label not in output}
        if summed == set(outputs):  # a tied table, say, which is read from its last dimension
            pairs.reverse()
        elif summed != set(inputs):
            return jnp.einsum(equation, x, self.whole(x))
        (first, of_first), (second, of_second) = pairs
        kept = "".join(label for label in of_x if label not in summed) + rank
        h = jnp.einsum(f"{of_x},{of_first}->{kept}", x, first.whole(like=x))
        y = jnp.einsum(f"{kept},{of_second}->{output}", h, second.whole(like=h))
        return y * self.scale.astype(y.dtype)


LORA = ("lora_a", "lora_b", "lora_scale")  # a parameter `kernel` has its factors in `kernel_lora_a`
STACKED = ("layers", "expert")  # dimensions along which whole weights are stacked


def stacked_product(a: jax.Array, b: jax.Array, stack: int) -> jax.Array:
    """a (*stack, *inputs, rank) times b (*stack, rank, *outputs): (*stack, *inputs, *outputs)."""
    batch = tuple(range(stack))
    return jax.lax.dot_general(a, b, (((a.ndim - 1,), (stack,)), (batch, batch)))


def matrix_dims(names: Names) -> tuple[int, int]:
    """Where the inputs and where the outputs of a weight begin.

    A weight reads from its first dimension when that is the residual width, as in (embed, heads,
    head_dim); otherwise it writes to its last, as in (heads, head_dim, embed) or a convolution.
    """
    stack = next((d for d, name in enumerate(names) if name not in STACKED), len(names))
    inner = len(names) - stack
    return stack, stack + (1 if inner and names[stack] == "embed" else max(inner - 1, 0))


def sum_dtype(dtype: Any) -> Any:
    """In which gradients of values of a dtype are summed over the mesh, and in loops."""
    return jnp.promote_types(current_rules().reduce_dtype, dtype)


def spread(tree: Any, axes: Iterable[str], dtype: Any = None) -> Any:
    """Parameters typed as varying over `axes`; the transpose sums their gradients there.

    They have the dtype in which they are summed: that of sums of `dtype`, by default their own.
    """
    wide = jax.tree.map(lambda x: x.astype(sum_dtype(dtype or x.dtype)), tree)
    return collectives.vary(wide, axes)


def _gather_narrow(x: jax.Array, dtype: Any, dim: int, same: bool) -> jax.Array:
    """Cast, then gather over fsdp; the transpose casts back before it sums, not after."""
    wide = x.dtype
    back = collectives.local_slice if same else collectives.psum_scatter

    @jax.custom_vjp
    def gather(x: jax.Array) -> jax.Array:
        return collectives.all_gather(x.astype(dtype), "fsdp", dim, same)

    def forward(x: jax.Array) -> tuple[jax.Array, None]:
        return gather(x), None

    def backward(_: None, g: jax.Array) -> tuple[jax.Array]:
        return (back(g.astype(wide), "fsdp", dim),)

    gather.defvjp(forward, backward)
    return gather(x)


def split_axis(name: str | None, size: int | None = None) -> str | None:
    """The mesh axis over which a dimension of an activation is split here, or None.

    That is `bound_axis`, except that fsdp splits weights only. Raises as `Rules.axis` does.
    """
    axis = bound_axis(name, size)
    return None if axis == "fsdp" else axis


def bound_axes(shape: Sequence[int], names: Names) -> tuple[str | None, ...]:
    """The mesh axis that splits each dimension of a global shape here."""
    return tuple(bound_axis(name, size) for size, name in zip(shape, names, strict=True))


def local_shape(shape: Sequence[int], axes: Sequence[str | None]) -> tuple[int, ...]:
    """This shard's part of a global shape; the whole outside shard_map."""
    return tuple(
        size // collectives.axis_size(axis) if axis else size
        for size, axis in zip(shape, axes, strict=True)
    )


class Layer(nn.Module):
    """A Linen module whose parameters and statistics carry logical names."""

    def weight(self, name: str, shape: Sequence[int], names: Names, init: Initializer) -> Weight:
        """A parameter of global `shape`; `names` has one entry per dimension.

        It is made in float32; what is applied has the dtype in which it is stored.
        """
        axes = bound_axes(shape, names)
        stddev = getattr(init, "stddev", None)  # see nn.initializers

        def make(key: jax.Array) -> Named:
            value = init(key, local_shape(shape, axes))
            return Named(value, names, None if stddev is None else stddev(shape))

        value: Any = self.param(name, make)  # Linen unboxes it
        return Weight(value, axes, self._low_rank(name, axes))

    def _low_rank(self, name: str, axes: tuple[str | None, ...]) -> LowRank | None:
        """The factors beside a parameter, where there are any."""
        beside = [f"{name}_{factor}" for factor in LORA]
        if not self.has_variable("params", beside[0]):
            return None
        a, b, scale = (nn.meta.unbox(self.get_variable("params", path)) for path in beside)
        stack, cut = a.ndim + b.ndim - len(axes) - 2, a.ndim - 1
        return LowRank(
            Weight(a, (*axes[:cut], None)),
            Weight(b, (*axes[:stack], None, *axes[cut:])),
            scale,
            stack,
        )

    def statistic(
        self, name: str, shape: Sequence[int], names: Names, fill: float, collection: str
    ) -> nn.Variable[Any]:
        """A float32 variable that is not trained (a running mean, say), filled with `fill`."""
        local = local_shape(shape, bound_axes(shape, names))

        def make() -> Named:
            return Named(jnp.full(local, fill, jnp.float32), names)

        return self.variable(collection, name, make)


def is_named(x: Any) -> bool:
    return isinstance(x, Named)


def unbox(tree: Any) -> Any:
    """The tree with every `Named` replaced by its value."""
    return jax.tree.map(lambda x: x.value if is_named(x) else x, tree, is_leaf=is_named)


def specs(tree: Any, rules: Rules, mesh: Mesh) -> Any:
    """A PartitionSpec per leaf of a (possibly abstract) tree of `Named` values.

    Raises:
      ValueError: see `nn.parallel.mesh.weight_spec`; the weight is named by its path.
    """

    def one(path: Any, leaf: Any) -> P:
        if not is_named(leaf):
            return P()
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return weight_spec(name, leaf.value.shape, leaf.names, rules, mesh)

    return jax.tree_util.tree_map_with_path(one, tree, is_leaf=is_named)
