"""The section `optimizer` as an Optax chain and its learning rate.

A chain is: clip the gradient, turn it into a direction, decay the weights, multiply by the rate.
sgd, momentum, nesterov, rmsprop and adam add the decay to the gradient (L2, as their papers and
PyTorch do); the others decay the weights beside the gradient (Loshchilov & Hutter 2019).

The kind of a parameter is its leaf's name: kernel, embedding, scale or bias, alone or behind an
underscore (`query_kernel`). Its rank would mislead: layers are stacked, so that a bias is (L, D).
`decay_mask="kernels"` decays kernels only. Methods that look at whole matrices (lamb, adafactor,
muon) see each layer and each expert of a stack by itself.

Under a rule of `nn.learning.parametrisation` the gradients of a weight are multiplied before they
become a direction, and the direction after it, by what the rule makes of the weight's shape.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from ml_collections import ConfigDict
from optax import contrib

from nn import names
from nn.learning.parametrisation import Row
from nn.optim.muon import scale_by_muon
from nn.parallel.weight import STACKED, is_named, matrix_dims

KINDS = ("kernel", "embedding", "scale", "bias")
OUTPUTS = ("head", "output")  # modules that end a model: adam rather than muon
Tree = Any


@dataclasses.dataclass(frozen=True)
class Leaf:
    """What a method may ask about one parameter; a leaf of a tree like the parameters."""

    path: str  # "blocks/mlp/up_kernel"
    shape: tuple[int, ...]
    names: tuple[str | None, ...]  # logical, one per dimension
    sharding: NamedSharding | None = None  # None: all on one device

    @property
    def kind(self) -> str:
        """One of KINDS, or "other"."""
        name = self.path.rpartition("/")[2]
        return next((k for k in KINDS if name == k or name.endswith(f"_{k}")), "other")

    @property
    def stack(self) -> tuple[int, ...]:
        """The sizes of the leading dimensions that stack whole weights."""
        depth = 0
        while depth < len(self.names) and self.names[depth] in STACKED:
            depth += 1
        return self.shape[:depth]

    @property
    def matrix(self) -> contrib.MuonDimensionNumbers | None:
        """Which dimensions are inputs and outputs of the matrix, for muon; None where adam is due.

        Muon is for hidden matrices (Jordan 2024): not for embeddings, heads and vectors.
        """
        rank = len(self.shape)
        stack, cut = matrix_dims(self.names)
        module = self.path.rpartition("/")[0].rpartition("/")[2]
        if self.kind != "kernel" or rank - stack < 2 or "vocab" in self.names or module in OUTPUTS:
            return None
        return contrib.MuonDimensionNumbers(tuple(range(stack, cut)), tuple(range(cut, rank)))

    @property
    def side(self) -> int:
        """The longer side of the matrix."""
        dims = self.matrix or contrib.MuonDimensionNumbers((), ())
        return max(math.prod(self.shape[d] for d in side) for side in dims)


def describe(params: Tree, shardings: Tree = None) -> Tree:
    """A `Leaf` per parameter, for a tree of `Named` values, arrays or their abstract forms."""

    def one(path: Any, leaf: Any, *sharding: Any) -> Leaf:
        text = jax.tree_util.keystr(path, simple=True, separator="/")
        shape = tuple(leaf.value.shape if is_named(leaf) else leaf.shape)
        return Leaf(text, shape, leaf.names if is_named(leaf) else (None,) * len(shape), *sharding)

    trees = (params,) if shardings is None else (params, shardings)
    return jax.tree_util.tree_map_with_path(one, *trees, is_leaf=is_named)


DECAY_MASKS: dict[str, Callable[[Leaf], bool]] = {
    "none": lambda leaf: False,
    "kernels": lambda leaf: leaf.kind == "kernel",
    "all": lambda leaf: True,
}


def decay_mask(name: str, leaves: Tree) -> Tree:
    """Which parameters decay: a tree of bools."""
    return jax.tree.map(names.lookup("optimizer.decay_mask", name, DECAY_MASKS), leaves)


def per_weight(method: optax.GradientTransformation, leaves: Tree) -> optax.GradientTransformation:
    """`method`, applied to each weight of a stack by itself."""

    def label(leaf: Leaf) -> str:
        return "x".join(map(str, leaf.stack))

    stacks = {label(leaf): leaf.stack for leaf in jax.tree.leaves(leaves)}

    def lifted(depth: int) -> optax.GradientTransformation:
        init, update = method.init, method.update
        for _ in range(depth):
            init, update = jax.vmap(init), jax.vmap(update)
        return optax.GradientTransformation(init, update)

    methods = {name: lifted(len(stack)) for name, stack in stacks.items()}
    return optax.partition(methods, jax.tree.map(label, leaves))


def _adam(o: ConfigDict, leaves: Tree) -> optax.GradientTransformation:
    return optax.scale_by_adam(o.b1, o.b2, o.eps)


def _adafactor(o: ConfigDict, leaves: Tree) -> optax.GradientTransformation:
    """Shazeer & Stern 2018, algorithm 4; the rate is relative to the size of each weight."""
    return per_weight(
        optax.chain(
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            optax.scale_by_param_block_rms(),
        ),
        leaves,
    )


def _muon(o: ConfigDict, leaves: Tree) -> optax.GradientTransformation:
    """Jordan 2024 on hidden matrices, adam on the rest.

    Updates are scaled to the size of Adam's (Liu et al. 2025, eq. 4), so one rate serves both.
    """
    masked = optax.MaskedNode()
    dimensions = jax.tree.map(lambda leaf: leaf.matrix or masked, leaves)
    shardings = jax.tree.map(lambda leaf: leaf.sharding if leaf.matrix else masked, leaves)
    sizes = jax.tree.map(lambda leaf: 0.2 * leaf.side**0.5 if leaf.matrix else masked, leaves)
    resize = optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, sizes))
    return optax.partition(
        {
            "muon": optax.chain(
                scale_by_muon(o.momentum, dimensions, shardings),
                resize,
            ),
            "adam": _adam(o, leaves),
        },
        jax.tree.map(lambda leaf: "muon" if leaf.matrix else "adam", leaves),
    )


Scales = Callable[[Leaf, Row], tuple[float, float]]


def _sgd_scales(leaf: Leaf, row: Row) -> tuple[float, float]:
    """The root of the factor of the rate on either side: between them all weights are of a size."""
    return row.sgd_rate**0.5, row.sgd_rate**0.5


def _adam_scales(leaf: Leaf, row: Row) -> tuple[float, float]:
    """Gradients as large as the base's, beside epsilon."""
    return 1 / row.gradient, row.adam_rate


def _muon_scales(leaf: Leaf, row: Row) -> tuple[float, float]:
    """The spectral norm of a step, 0.2 sqrt(side), becomes sqrt(outputs / inputs) over that of the
    base (Yang, Simon & Bernstein 2023, condition 1)."""
    if leaf.matrix is None:
        return _adam_scales(leaf, row)
    side = leaf.side / dataclasses.replace(leaf, shape=row.base_shape).side
    return 1 / row.gradient, (row.fan_out / row.fan_in / side) ** 0.5


@dataclasses.dataclass(frozen=True)
class Method:
    """How a gradient becomes a direction.

    coupled: the weight decay is part of the gradient.
    linear: the direction is proportional to the gradient.
    last: what follows the decay.
    scales: factors of a weight's gradient and of its direction under a rule for the size of the
      model; None: not known.
    """

    direction: Callable[[ConfigDict, Tree], optax.GradientTransformation]
    coupled: bool = False
    linear: bool = False
    last: Callable[[Tree], optax.GradientTransformation] | None = None
    scales: Scales | None = _adam_scales


_SGD: dict[str, Any] = {"coupled": True, "linear": True, "scales": _sgd_scales}
METHODS = {
    "sgd": Method(lambda o, _: optax.identity(), **_SGD),
    "momentum": Method(lambda o, _: optax.trace(o.momentum), **_SGD),
    "nesterov": Method(lambda o, _: optax.trace(o.momentum, nesterov=True), **_SGD),
    "rmsprop": Method(
        lambda o, _: optax.scale_by_rms(o.b2, o.eps, eps_in_sqrt=False), coupled=True
    ),
    "adam": Method(_adam, coupled=True),
    "adamw": Method(_adam),
    "lion": Method(lambda o, _: optax.scale_by_lion(o.b1, o.b2)),
    "adafactor": Method(_adafactor, scales=None),
    "lamb": Method(
        _adam, last=lambda leaves: per_weight(optax.scale_by_trust_ratio(), leaves), scales=None
    ),
    "muon": Method(_muon, scales=_muon_scales),
}
NAMES = tuple(METHODS)


def _times(factors: Tree) -> list[optax.GradientTransformation]:
    """Multiplies what it is given leaf by leaf; nothing where all factors are 1."""
    if all(factor == 1 for factor in jax.tree.leaves(factors)):
        return []
    return [optax.stateless(lambda tree, _: jax.tree.map(jnp.multiply, tree, factors))]


def _decay(options: ConfigDict, leaves: Tree, after: Tree) -> list[optax.GradientTransformation]:
    """Of what `decay_mask` says; as strong whatever the direction is multiplied by afterwards."""
    strength, mask = options.weight_decay, decay_mask(options.decay_mask, leaves)
    if not strength:
        return []
    if not _times(after):
        return [optax.add_decayed_weights(strength, mask)]
    by = jax.tree.map(lambda factor, decays: strength * decays / factor, after, mask)

    def update(tree: Tree, params: Tree) -> Tree:
        return jax.tree.map(lambda u, w, s: u + s * w if s else u, tree, params, by)

    return [optax.stateless(update)]


def make(
    options: ConfigDict,
    steps: int,
    params: Tree,
    shardings: Tree = None,
    rows: Mapping[str, Row] | None = None,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The chain that `config.optimizer` describes, and its learning rate by step.

    Args:
      options: the section `optimizer` of a config.
      steps: of the run; the schedule ends there unless `decay_steps` says otherwise.
      params: the parameters as `Named` values, abstract or not. Plain arrays will do where no
        weights are stacked. The chain itself works on trees of plain arrays.
      shardings: a `NamedSharding` per parameter, where they are spread over a mesh.
      rows: what the size of the model says of each parameter, by path; none: nothing.
    Raises:
      ValueError: unknown method, schedule or mask.
    """
    method = names.lookup("optimizer.name", options.name, METHODS)
    leaves = describe(params, shardings)
    rate = schedule(options, steps)
    norm, before, after = _factors(method, leaves, rows or {})
    parts = [method.direction(options, leaves)]
    at = 0 if method.coupled else 1
    parts[at:at] = _decay(options, leaves, after)
    if options.clip_norm:
        # Clipped is the norm of gradients that are as large as the base's, whatever follows.
        rest = jax.tree.map(lambda a, b: a / b, before, norm)
        clip = optax.clip_by_global_norm(options.clip_norm)
        parts[:0] = [*_times(norm), clip, *_times(rest)]
    else:
        parts[:0] = _times(before)
    if method.last is not None:
        parts.append(method.last(leaves))
    parts += _times(after)
    return optax.chain(*parts, optax.scale_by_learning_rate(rate)), rate


def _factors(method: Method, leaves: Tree, rows: Mapping[str, Row]) -> tuple[Tree, Tree, Tree]:
    """Of gradients before their norm is taken and before the method, and of its directions."""
    ones = jax.tree.map(lambda leaf: 1.0, leaves)
    if not rows:
        return ones, ones, ones
    scales = method.scales
    assert scales is not None, "refused when the config is read"
    pairs = jax.tree.map(lambda leaf: scales(leaf, rows[leaf.path]), leaves)
    norm = jax.tree.map(lambda leaf: rows[leaf.path].sgd_rate ** 0.5, leaves)
    before, after = jax.tree.transpose(jax.tree.structure(leaves), None, pairs)
    return norm, before, after


# The part of the peak at step s. w: warmup steps, p: progress from there to the end in 0..1,
# f: what is left of the rate at the end, c: progress through the cooldown in 0..1.
Shape = Callable[..., jax.Array]
SCHEDULES: dict[str, Shape] = {
    "constant": lambda s, w, p, f, c: jnp.ones_like(p),
    "linear": lambda s, w, p, f, c: 1 - (1 - f) * p,
    "cosine": lambda s, w, p, f, c: f + (1 - f) * 0.5 * (1 + jnp.cos(math.pi * p)),
    # Vaswani et al. 2017, eq. 3
    "inverse_sqrt": lambda s, w, p, f, c: jnp.sqrt((w + 1) / jnp.maximum(s + 1, w + 1)),
    # Hu et al. 2024
    "warmup_stable_decay": lambda s, w, p, f, c: 1 - (1 - f) * c,
}


def schedule(options: ConfigDict, steps: int) -> optax.Schedule:
    """Step (from 0) -> learning rate.

    It rises linearly, `peak * (s + 1) / (warmup + 1)`, and no step is wasted at a rate of 0. From
    there it falls to `final_fraction` of the peak at `decay_steps` (inverse_sqrt: without end;
    constant: not at all) and stays.
    """
    shape = names.lookup("optimizer.schedule", options.schedule, SCHEDULES)
    peak, final, warmup = options.learning_rate, options.final_fraction, options.warmup_steps
    end = steps if options.decay_steps is None else options.decay_steps
    cooldown = max(end * (1 - options.cooldown_fraction), warmup)  # the step at which it starts

    def rate(count: Any) -> jax.Array:
        s = jnp.asarray(count, jnp.float32)
        rise = jnp.minimum((s + 1) / (warmup + 1), 1.0)
        through = [jnp.clip((s - a) / max(end - a, 1), 0.0, 1.0) for a in (warmup, cooldown)]
        return peak * rise * shape(s, warmup, through[0], final, through[1])

    return rate
