"""Which parameters are trained: all, some by pattern, or low-rank factors beside frozen weights.

A parameter is named by its path, "blocks/attention/query_kernel". A pattern is a regular
expression that matches whole paths; several stand side by side, separated by commas.

LoRA (Hu et al. 2021): W + (alpha / rank) A B, with A normal of variance 1 / inputs and B zero, so
that training starts from W. The factors are parameters beside their weight (`kernel_lora_a`,
`kernel_lora_b`, and their scale, `kernel_lora_scale`, which is never trained), so that a
tree of parameters is complete in itself: checkpoints, sampling and evaluation need no word about
it, stacked layers and pipeline stages carry the factors along, and model code does not see them.
`nn.parallel.weight.LowRank` says how they are applied.

Parameters that are not trained have neither gradients nor state of the optimizer.
"""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from nn import initializers, names
from nn.parallel.weight import LORA, Named, matrix_dims, stacked_product

Tree = Any  # nested dicts


@dataclasses.dataclass(frozen=True)
class Tune:
    """Part of section `tune` of a config: see experiments/base.py."""

    train: str = ""  # patterns of what is trained; "": everything, or with LoRA its factors only
    freeze: str = ""  # patterns of what is not, whatever `train` says
    lora_rank: int = 0  # of the factors; 0: no LoRA
    lora_alpha: float = 16.0  # their product counts alpha / rank
    lora_targets: str = ""  # patterns of the weights that have factors; "": all dense but the head

    def __post_init__(self) -> None:
        if self.lora_rank < 0:
            raise ValueError(f"tune.lora_rank={self.lora_rank}: must be at least 0; nearest: 0")
        if self.lora_targets and not self.lora_rank:
            raise ValueError(
                f"tune.lora_targets={self.lora_targets!r} needs tune.lora_rank of at least 1; "
                "nearest: 8"
            )
        for field in ("train", "freeze", "lora_targets"):
            _patterns(field, getattr(self, field))

    @property
    def everything(self) -> bool:
        """Whether all parameters are trained and none is added."""
        return not (self.train or self.freeze or self.lora_rank)

    def split(self, params: Tree) -> tuple[Tree, Tree]:
        """A tree like the parameters as two: what is trained, and the rest.

        Raises ValueError for a pattern that matches nothing, and where nothing would be trained.
        """
        if self.everything:
            return params, {}
        flat = flatten_dict(params, sep="/")
        chosen = self._trained(flat)
        return _parted(flat, chosen)

    def _trained(self, paths: Iterable[str]) -> set[str]:
        """Those of the paths that are trained."""
        scales = f"_{LORA[2]}"
        able = [path for path in paths if not path.endswith(scales)]
        factors = {path for path in able if path.endswith((f"_{LORA[0]}", f"_{LORA[1]}"))}
        chosen = set(factors)
        if self.train:
            chosen |= matching("train", self.train, able)
        elif not self.lora_rank:
            chosen = set(able)
        if self.freeze:
            chosen -= matching("freeze", self.freeze, able)
        if not chosen:
            raise ValueError(
                f"tune.train={self.train!r} and tune.freeze={self.freeze!r} leave nothing to "
                "train; nearest: tune.freeze=''"
            )
        return chosen

    def with_factors(self, params: Tree, seed: int) -> Tree:
        """The parameters, `Named`, with the factors of LoRA beside their weights.

        Raises ValueError for a target that matches nothing, or is no dense weight.
        """
        if not self.lora_rank:
            return params
        flat = flatten_dict(params, sep="/")
        key = jax.random.fold_in(jax.random.key(seed), 2)
        for path in sorted(self._targets(flat)):
            a, b, scale = self._factors(flat[path], jax.random.fold_in(key, _number(path)))
            flat |= zip((f"{path}_{factor}" for factor in LORA), (a, b, scale), strict=True)
        return unflatten_dict(flat, sep="/")

    def _targets(self, flat: Mapping[str, Named]) -> set[str]:
        dense = [path for path, leaf in flat.items() if is_dense(path, leaf.names)]
        if not self.lora_targets:
            return {path for path in dense if "vocab" not in flat[path].names}
        chosen = matching("lora_targets", self.lora_targets, flat)
        for path in sorted(chosen - set(dense)):
            near = names.nearest(path, dense) or (dense[0] if dense else "none here")
            raise ValueError(
                f"tune.lora_targets={self.lora_targets!r}: {path} is no dense weight, which LoRA "
                f"is for; nearest: {near!r}"
            )
        return chosen

    def _factors(self, weight: Named, key: jax.Array) -> tuple[Named, Named, Named]:
        """A, B and their scale, with the logical names of the dimensions that they share."""
        stack, cut = matrix_dims(weight.names)
        shape, rank = weight.value.shape, self.lora_rank
        depth = weight.names.count("layers")  # the scale is one number per layer
        a_shape, b_shape = (*shape[:cut], rank), (*shape[:stack], rank, *shape[cut:])
        inputs = 1
        for size in shape[stack:cut]:
            inputs *= size
        a = initializers.normal(inputs**-0.5)(key, a_shape)
        scale = jnp.full(shape[:depth], self.lora_alpha / rank, jnp.float32)
        return (
            Named(a, (*weight.names[:cut], None)),
            Named(
                jnp.zeros(b_shape, jnp.float32), (*weight.names[:stack], None, *weight.names[cut:])
            ),
            Named(scale, weight.names[:depth]),
        )


def without_factors(params: Tree) -> tuple[Tree, Tree]:
    """A tree like the parameters as two: the model's own, and the factors beside them."""
    flat, endings = flatten_dict(params, sep="/"), tuple(f"_{factor}" for factor in LORA)
    return _parted(flat, {path for path in flat if not path.endswith(endings)})


def _parted(flat: Mapping[str, Any], chosen: set[str]) -> tuple[Tree, Tree]:
    """The chosen leaves and the others, as nested trees."""
    first = {path: leaf for path, leaf in flat.items() if path in chosen}
    second = {path: leaf for path, leaf in flat.items() if path not in chosen}
    return unflatten_dict(first, sep="/"), unflatten_dict(second, sep="/")


def join(a: Tree, b: Tree) -> Tree:
    """The inverse of `Tune.split`."""
    if not b:
        return a
    return unflatten_dict({**flatten_dict(a, sep="/"), **flatten_dict(b, sep="/")}, sep="/")


def merge(params: Tree) -> Tree:
    """The parameters with the product of the factors added to each weight, and without factors."""
    flat = dict(flatten_dict(params, sep="/"))
    for path in [path for path in flat if f"{path}_{LORA[0]}" in flat]:
        a, b, scale = (flat.pop(f"{path}_{factor}") for factor in LORA)
        weight = flat[path]
        wide = jnp.promote_types(weight.dtype, jnp.float32)
        stack = a.ndim + b.ndim - weight.ndim - 2
        product = stacked_product(a.astype(wide), b.astype(wide), stack)
        scale = scale.astype(wide).reshape(scale.shape + (1,) * (weight.ndim - scale.ndim))
        flat[path] = (weight.astype(wide) + scale * product).astype(weight.dtype)
    return unflatten_dict(flat, sep="/")


def is_dense(path: str, logical: tuple[str | None, ...]) -> bool:
    """Whether a parameter is the matrix of a product with the last dimensions of its input."""
    leaf = path.rpartition("/")[2]
    if leaf != "kernel" and not leaf.endswith("_kernel"):
        return False
    stack, _ = matrix_dims(logical)
    return len(logical) - stack >= 2 and not {"conv_in", "channels"} & set(logical)


def matching(field: str, text: str, paths: Iterable[str]) -> set[str]:
    """The paths that any of the patterns matches; ValueError for a pattern that matches none."""
    paths, chosen = list(paths), set[str]()
    for pattern in _patterns(field, text):
        found = {path for path in paths if pattern.fullmatch(path)}
        if not found:
            raise ValueError(
                f"tune.{field}={text!r}: {pattern.pattern!r} matches no parameter; "
                f"nearest: {_nearest(pattern.pattern, paths)!r}"
            )
        chosen |= found
    return chosen


def _patterns(field: str, text: str) -> list[re.Pattern[str]]:
    try:
        return [re.compile(part.strip()) for part in text.split(",") if part.strip()]
    except re.error as error:
        raise ValueError(
            f"tune.{field}={text!r} is no regular expression: {error}; nearest: {re.escape(text)!r}"
        ) from None


def _nearest(pattern: str, paths: list[str]) -> str:
    """The path most like a pattern, or the beginning of paths that is."""
    wanted = pattern.removesuffix("/.*").split("/")
    starts = {"/".join(path.split("/")[: len(wanted)]): path for path in paths}
    near = names.nearest("/".join(wanted), starts)
    if near is None:
        return max(paths, key=lambda path: len(set(path.split("/")) & set(wanted)))
    return near if near == starts[near] else f"{near}/.*"


def _number(path: str) -> int:
    """Of a path, the same in every process."""
    return zlib.crc32(path.encode())
