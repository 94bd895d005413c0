"""Typed collectives that are identities where their axis is absent.

Inside `jax.shard_map(check_vma=True)` every value carries the set of mesh axes over which it
varies. These helpers act only on axes that are bound and larger than 1, and only where the
value really varies, so that modules need not know the mesh. Their transposes, which
autodiff takes, are the gradient communications; none is written by hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import jax
from jax import lax

T = TypeVar("T")


def bound(axes: Iterable[str]) -> tuple[str, ...]:
    """Those of `axes` that the surrounding shard_map binds with a size above 1."""
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(a for a in axes if a in mesh.manual_axes and mesh.shape[a] > 1)


def axis_size(axes: str | Sequence[str]) -> int:
    """Number of shards along the axes (1 where absent)."""
    size = 1
    for axis in bound([axes] if isinstance(axes, str) else axes):
        size *= lax.axis_size(axis)
    return size


def axis_index(axes: str | Sequence[str]) -> jax.Array | int:
    """Index of this shard along the axes, the first the slowest (0 where absent)."""
    names = bound([axes] if isinstance(axes, str) else axes)
    return lax.axis_index(names) if names else 0


def varying(x: jax.Array) -> tuple[str, ...]:
    """The mesh axes over which the value differs from shard to shard."""
    kind = jax.typeof(x).manual_axis_type
    return tuple(sorted(kind.varying)) if kind is not None else ()


def vary(tree: T, axes: Iterable[str]) -> T:
    """Type every leaf as varying over `axes`; the transpose sums cotangents over them."""
    wanted = bound(axes)

    def cast(x: jax.Array) -> jax.Array:
        missing = tuple(a for a in wanted if a not in varying(x))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, tree)


def _shared(x: jax.Array, axes: str | Iterable[str]) -> tuple[str, ...]:
    held = varying(x)
    return tuple(a for a in bound([axes] if isinstance(axes, str) else axes) if a in held)


def psum(x: jax.Array, axes: str | Iterable[str]) -> jax.Array:
    """Sum over those of `axes` over which x varies; the result is the same on all of them."""
    names = _shared(x, axes)
    return lax.psum(x, names) if names else x


def pmax(x: jax.Array, axes: str | Iterable[str]) -> jax.Array:
    """Maximum over those of `axes` over which x varies. Not differentiable."""
    names = _shared(x, axes)
    return lax.pmax(x, names) if names else x


def pmean(x: jax.Array, axes: str | Iterable[str]) -> jax.Array:
    """Mean over those of `axes` over which x varies."""
    names = _shared(x, axes)
    return lax.pmean(x, names) if names else x


def shards(x: jax.Array, axes: str | Iterable[str]) -> int:
    """Over how many shards x is spread along `axes`."""
    return axis_size(_shared(x, axes))


def all_gather(x: jax.Array, axes: str | Sequence[str], dim: int, same: bool = False) -> jax.Array:
    """Concatenate the shards along `dim`.

    `same=False` types the result as varying (each shard goes on with work of its own: the
    transpose is a reduce-scatter); `same=True` types it as equal everywhere (the transpose is a
    slice).
    """
    for axis in reversed(bound([axes] if isinstance(axes, str) else axes)):
        x = lax.all_gather(
            vary(x, [axis]), axis, axis=dim, tiled=True, to="invarying" if same else "varying"
        )
    return x


def psum_scatter(x: jax.Array, axis: str, dim: int) -> jax.Array:
    """Sum over `axis` and keep this shard's slice of `dim`."""
    if not bound([axis]):
        return x
    return lax.psum_scatter(vary(x, [axis]), axis, scatter_dimension=dim, tiled=True)


def all_to_all(
    x: jax.Array, axes: str | Sequence[str], split: int = 0, concat: int = 0
) -> jax.Array:
    """Cut dimension `split` into one piece per shard, and join those received along `concat`."""
    names = bound([axes] if isinstance(axes, str) else axes)
    return lax.all_to_all(vary(x, names), names, split, concat, tiled=True) if names else x


def local_slice(x: jax.Array, axes: str | Sequence[str], dim: int) -> jax.Array:
    """This shard's slice of `dim` of a value that holds the whole of it."""
    names = bound([axes] if isinstance(axes, str) else axes)
    if not names:
        return x
    size = x.shape[dim] // axis_size(names)
    return lax.dynamic_slice_in_dim(vary(x, names), axis_index(names) * size, size, dim)


def shift(x: jax.Array, axis: str, by: int = 1) -> jax.Array:
    """Pass the value to the shard `by` places further along a ring."""
    if not bound([axis]):
        return x
    n = lax.axis_size(axis)
    return lax.ppermute(vary(x, [axis]), axis, [(i, (i + by) % n) for i in range(n)])
