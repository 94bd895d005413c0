"""A stack of equal layers as one scan over depth: compile time does not grow with it.

The weights of all layers are stacked along a first dimension of the logical name "layers". A layer
is a module `(carry, layer, *context) -> (carry, aux)`; `layer` is its number, from 0, and noise
inside it is that of its number. `aux` is a dict of scalars about this layer, {} for most: "loss" is
added to the loss of every example (the balance of experts, say), the others are metrics.

`run` applies a stack, on one device or over the stages of `pipe`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nn import names
from nn.parallel import axis_index, pipeline, schedule
from nn.parallel.mesh import current_rules
from nn.parallel.random import place

STATISTICS = "statistics"  # the collection of what layers of a stack keep beside their weights
Aux = dict[str, jax.Array]
Derive = Callable[[Any], tuple[Any, ...]]

# What the backward pass finds instead of computing it again. `saved`: names of values that layers
# have given with `checkpoint_name`.
_policies = jax.checkpoint_policies
REMAT: dict[str, Callable[[Sequence[str]], Callable[..., Any] | None]] = {
    "none": lambda saved: None,  # everything
    "block": lambda saved: _policies.nothing_saveable,  # the input of each block
    "dots": lambda saved: _policies.dots_with_no_batch_dims_saveable,
    "names": lambda saved: _policies.save_only_these_names(*saved),
    "offload": lambda saved: _policies.save_and_offload_only_these_names(
        names_which_can_be_saved=(),
        names_which_can_be_offloaded=tuple(saved),
        offload_src="device",
        offload_dst="pinned_host",
    ),
}
# query, key, value: as they meet; attention: before the output projection; mlp: before the
# activation; conv: before the norm.
SAVABLE = dict.fromkeys(("query", "key", "value", "attention", "mlp", "conv"))


def remat_policy(remat: str, saved: Sequence[str] = ()) -> Callable[..., Any] | None:
    """The policy of `jax.checkpoint`; None: no checkpoint.

    Args:
      remat: a key of `REMAT`.
      saved: keys of `SAVABLE`, kept by "names" and sent to the memory of the host by "offload".
    Raises:
      ValueError: a name that is unknown, or none where one is needed.
    """
    make = names.lookup("model.remat", remat, REMAT)
    for name in saved:
        names.lookup("model.remat_names", name, SAVABLE)
    if remat in ("names", "offload") and not saved:
        raise ValueError(f"model.remat={remat!r} needs model.remat_names; nearest: 'block'")
    return make(saved)


def stacked(
    block: type[nn.Module],
    length: int,
    context: int,
    remat: str = "none",
    unroll: int = 1,
    saved: Sequence[str] = (),
) -> Callable[..., nn.Module]:
    """A class like `block` that is `length` layers of it; apply it with `run`.

    context: number of arguments after `layer`, the same for all layers.
    remat, saved: see `remat_policy`. unroll: layers per iteration of the loop; 0: all of them.
    Raises ValueError where the stages of `pipe` do not divide the layers.
    """
    local = _layers_of_a_piece(length)
    policy = remat_policy(remat, saved)
    layer_class = _placed(block)
    if policy is not None:
        layer_class = nn.remat(layer_class, policy=policy, prevent_cse=False)
    return nn.scan(
        layer_class,
        variable_axes={"params": 0, "intermediates": 0, STATISTICS: 0},
        split_rngs={"params": True, "dropout": False},
        in_axes=(0, *(nn.broadcast,) * context),
        length=local,
        unroll=unroll or local,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )


def run(
    blocks: nn.Module, length: int, carry: Any, context: Any, derive: Derive
) -> tuple[Any, Aux]:
    """Apply all `length` layers: (carry, sums of aux over the layers).

    Where `pipe` splits the layers, carry is the output of the last layer on the last stage and zero
    on the others (see `pipeline.share`), aux is averaged over microbatches, and what layers sow is
    dropped. The schedule is that of the rules, except that 1f1b, which needs the loss
    (`pipeline.one_f_one_b`), goes as gpipe: in evaluation there is no backward pass to begin early.

    Args:
      carry: leaves whose first dimension is the batch.
      context: arrays whose first dimension is the batch, or 1 where all rows share it.
      derive: context -> arguments of every layer after its number. Masks and tables are made by it,
        of the rows of one microbatch at a time.
    """
    if pipeline.stages() == 1:
        apply: Any = blocks
        carry, aux = apply(carry, jnp.arange(length), *derive(context))
        return carry, jax.tree.map(jnp.sum, aux)
    rules = current_rules()
    weights, stage = staged(blocks, length, carry, context, derive)
    return pipeline.circular(stage, weights, carry, rules.microbatches, rules.rounds)


def staged(
    blocks: nn.Module, length: int, carry: Any, context: Any, derive: Derive
) -> tuple[Any, pipeline.Stage]:
    """This stage's weights and its pure function, for `nn.parallel.pipeline`; arguments as `run`.

    Raises ValueError where the schedule does not go with the stages and microbatches.
    """
    rules, n = current_rules(), pipeline.stages()
    parts, batch = rules.microbatches, jax.tree.leaves(carry)[0].shape[0]
    schedule.check(rules.schedule, n, parts, rules.rounds)
    size = _layers_of_a_piece(length)
    assert blocks.scope is not None
    rngs: Any = dict(blocks.scope.rngs)  # these, so that noise is that of the plain call
    module, variables = blocks.unbind()

    def stage(weights: Any, carry: Any, chunk: Any, part: Any) -> tuple[Any, Aux]:
        numbers = (chunk * n + axis_index(pipeline.PIPE)) * size + jnp.arange(size)
        own = derive(pipeline.rows(context, part, parts, batch))
        with place(part=part, parts=parts):
            carry, aux = module.apply({"params": weights}, carry, numbers, *own, rngs=rngs)
        return carry, jax.tree.map(jnp.sum, aux)

    return variables["params"], stage


def _layers_of_a_piece(length: int) -> int:
    n = pipeline.stages()
    pieces = n * (current_rules().rounds if n > 1 else 1)
    schedule.check_layers(length, n, pieces // n)
    return length // pieces


def _placed(block: type[nn.Module]) -> type[nn.Module]:
    """The class whose noise is that of the layer."""

    class Placed(block):  # type: ignore[misc, valid-type]
        def __call__(self, carry: Any, layer: jax.Array, *context: Any) -> Any:
            with place(layer=layer):
                return super().__call__(carry, layer, *context)

    Placed.__name__ = block.__name__
    return Placed
