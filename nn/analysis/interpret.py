"""Looking into a model and changing what it computes, without an edit of it.

A run of a model leaves what its modules sow ("attention", "residual"), and the output of any module
that is asked for. `Patch` puts the outputs of another run in the place of those of this one. All
of it works on traced values: wrap it in `jax.jit`, `jax.vmap` or `jax.grad` at will. The layers of
a stack are one scan, whose number of the layer is a traced value too; what a stack leaves has the
layers first.

    clean, left = observe(model, variables, tokens)
    attention_LBHTS = left["blocks/attention/attention"]
    lens_LBTV = logit_lens(model, variables, left["blocks/residual"])
    patch = Patch("blocks", left["blocks/residual"], where(left["blocks/residual"], layer=2))
    patched, _ = observe(model, variables, other_tokens, patches=[patch])

Models are run as on one device. Parameters that are spread over a mesh may be used under
`jax.jit`, which finds the collectives itself.

Legend: L layers, B batch, T query and S key positions, H heads, D residual width, V vocabulary,
C parts of the residual.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from nn import names
from nn.parallel.random import layer_here

OUTPUT = "output"  # under which the output of a module is left


@dataclasses.dataclass(frozen=True)
class Patch:
    """What takes the place of the output of a module, wholly or in part.

    module: its path, "blocks/mlp"; of an output of several arrays the first is meant, which for a
      block is the residual stream.
    value: of the shape of the output; for a module of a stack with the layers first.
    amount: broadcasts to `value`; 0 leaves the output, 1 replaces it, between them it is
      interpolated. See `where`.
    """

    module: str
    value: jax.Array
    amount: jax.Array

    def apply(self, old: jax.Array, layer: jax.Array | None) -> jax.Array:
        """The output that the module is given in place of `old`."""
        amount = jnp.broadcast_to(self.amount, (*self.amount.shape[:-1], self.value.shape[-1]))
        value = self.value
        if layer is not None:
            amount = (amount[0] if amount.shape[0] == 1 else amount[layer]).astype(old.dtype)
            value = value[layer]
        return ((1 - amount) * old + amount * value).astype(old.dtype)


def where(
    value: jax.Array,
    layer: int | Sequence[int] | None = None,
    position: int | Sequence[int] | None = None,
) -> jax.Array:
    """The amount of a patch that is 1 at some layers and positions and 0 elsewhere.

    value: (L, B, T, D) of the patch. None: all. Raises IndexError outside of it.
    """
    amount = jnp.ones((value.shape[0], 1, value.shape[2], 1), jnp.float32)
    for axis, chosen in ((0, layer), (2, position)):
        if chosen is None:
            continue
        size = value.shape[axis]
        index = jnp.atleast_1d(jnp.asarray(chosen))
        if int(index.min()) < -size or int(index.max()) >= size:
            kind = "layer" if axis == 0 else "position"
            raise IndexError(f"{kind} {chosen}: there are {size}; nearest: {size - 1}")
        shape = [size if dim == axis else 1 for dim in range(4)]
        amount = amount * jnp.zeros(size).at[index].set(1.0).reshape(shape)
    return amount


def observe(
    model: nn.Module,
    variables: Any,
    *inputs: Any,
    modules: Iterable[str] = (),
    patches: Sequence[Patch] = (),
    **keywords: Any,
) -> tuple[Any, dict[str, jax.Array]]:
    """`model.apply(variables, *inputs, **keywords)`, and what the run leaves, by path.

    What is sown lies under its own name, "blocks/residual"; the outputs of `modules`, patches
    applied, under "blocks/mlp/output". Of a module that runs several times it is that of the last.
    A block sows its residual before a patch of its output.

    Raises:
      ValueError: a module or patch names no module that runs; the nearest one is named.
    """
    visitor = _Visitor(tuple(modules), tuple(patches))
    with nn.intercept_methods(visitor):
        output, left = model.apply(variables, *inputs, mutable=["intermediates"], **keywords)
    visitor.check()
    sown = flatten_dict(left["intermediates"], sep="/") if "intermediates" in left else {}
    return output, {path: values[-1] for path, values in sown.items()}


class _Visitor:
    """The interceptor of one run."""

    def __init__(self, modules: tuple[str, ...], patches: tuple[Patch, ...]) -> None:
        self.modules, self.patches = modules, patches
        self.calls: dict[str, int] = {}

    def __call__(
        self, run: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        if context.method_name != "__call__":
            return run(*args, **kwargs)
        path = "/".join(context.module.path)
        before = self.calls.get(path, 0)
        output = run(*args, **kwargs)
        if self.calls.get(path, 0) != before:
            return output  # wrappers of a module, as in a stack, have its path: it was seen inside
        self.calls[path] = before + 1
        patches = [patch for patch in self.patches if patch.module == path]
        if not patches and path not in self.modules:
            return output
        (first, *others), structure = jax.tree.flatten(output)
        for patch in patches:
            first = patch.apply(first, layer_here())
        if path in self.modules:
            context.module.sow("intermediates", OUTPUT, first)
        return jax.tree.unflatten(structure, [first, *others])

    def check(self) -> None:
        for path in (*self.modules, *(patch.module for patch in self.patches)):
            names.lookup("module that runs", path, self.calls)


def sweep(
    model: nn.Module,
    variables: Any,
    *inputs: Any,
    module: str,
    source: jax.Array,
    metric: Callable[[Any], jax.Array],
    **keywords: Any,
) -> jax.Array:
    """Where the output of a module matters: causal tracing (Meng et al. 2022), (L, T).

    Entry (l, t) is the metric of the model's output when the output of the module at layer l and
    position t, and nothing else, is that of another run.

    Args:
      source: (L, B, T, D), the outputs of the module in the other run.
      metric: of the model's output, a scalar.
    """
    layers, _, positions = source.shape[:3]

    def one(index: jax.Array) -> jax.Array:
        layer, position = index // positions, index % positions
        amount = jnp.zeros((layers, 1, positions, 1)).at[layer, :, position].set(1.0)
        patches = [Patch(module, source, amount)]
        return metric(observe(model, variables, *inputs, patches=patches, **keywords)[0])

    return jax.lax.map(one, jnp.arange(layers * positions)).reshape(layers, positions)


def logits_of(model: nn.Module, variables: Any, x_BTD: jax.Array) -> jax.Array:
    """What the final norm and the head make of a residual, (B, T, D) -> (B, T, V)."""
    states_BTD = model.apply(variables, x_BTD, method="states")
    logits_BTV: Any = model.apply(variables, states_BTD, method="head")
    return logits_BTV


def logit_lens(model: nn.Module, variables: Any, residual_LBTD: jax.Array) -> jax.Array:
    """The prediction after each layer, were it the last (nostalgebraist 2020), (L, B, T, V)."""
    return jax.lax.map(lambda x_BTD: logits_of(model, variables, x_BTD), residual_LBTD)


def direct_logits(model: Any, variables: Any, parts_CBTD: jax.Array) -> jax.Array:
    """What each part of the final residual adds to the logits by itself, (C, B, T, V).

    Direct attribution (Elhage et al. 2021): the final norm divides every part by the size of their
    sum. The parts' logits then add up to those of the sum less those of a zero residual, which are
    the biases'. For heads that are linear.
    """
    config = model.config

    def size(x_BTD: jax.Array) -> jax.Array:
        x = x_BTD.astype(jnp.float32)
        if config.norm == "layer":
            x = x - x.mean(axis=-1, keepdims=True)
        return jnp.sqrt(jnp.square(x).mean(axis=-1, keepdims=True) + config.norm_eps)

    whole_BT1 = size(parts_CBTD.sum(axis=0))
    biases_BTV = logits_of(model, variables, jnp.zeros_like(parts_CBTD[0]))

    def one(part_BTD: jax.Array) -> jax.Array:
        own_BTV = logits_of(model, variables, part_BTD) - biases_BTV
        return own_BTV * (size(part_BTD) / whole_BT1)

    return jax.lax.map(one, parts_CBTD)


def stripe(attention_LBHTS: jax.Array, back: int) -> jax.Array:
    """How much of its attention each head gives to the position `back` before its own, (L, H).

    1: heads that look at the previous token. On rows that repeat themselves every P tokens, P - 1:
    induction heads, which look at what followed the last time (Olsson et al. 2022).
    """
    diagonal = jnp.diagonal(attention_LBHTS, -back, axis1=-2, axis2=-1)
    return diagonal.astype(jnp.float32).mean(axis=(1, 3))
