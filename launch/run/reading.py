"""What every loop over tokens does with a model: read tokens into a cache, ask for logits.

A loop is a small object with three pure functions, `start`, `step` and `view`; `launch.run.decode`
runs it. The model is any that has `empty_cache(batch, length, ahead=)`, whose leaves are (layers,
batch, ...), `hidden(tokens, positions, segments, cache=, **memory) -> (states, cache, aux)` and
`head(states)`.

Legend: B rows, P longest prompt, N new tokens, T = P + N, S tokens read at once, D width of the
states, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from nn.parallel import split_axis
from nn.parallel.collectives import all_gather


class Inputs(struct.PyTreeNode):
    """What rows go on from.

    prompts_BP: tokens, padded on the right; lengths_B: tokens of each prompt, at least 1.
    seed: uint32 key data; rows_B: global number of each row, so that noise follows the row.
    memory: arrays (B, ...) by the name under which `hidden` takes them, such as what an encoder
      has made of its inputs; {} for a decoder alone.
    """

    prompts_BP: jax.Array
    lengths_B: jax.Array
    seed: jax.Array
    rows_B: jax.Array
    memory: Mapping[str, Any] = struct.field(default_factory=dict)

    def keys(self, step: jax.Array | int) -> jax.Array:
        """A key for each row in this step, (B,)."""
        keys_B = jax.vmap(jax.random.fold_in, (None, 0))(
            jax.random.wrap_key_data(self.seed), self.rows_B
        )
        return jax.vmap(jax.random.fold_in, (0, None))(keys_B, step)


class State(struct.PyTreeNode):
    """What every loop carries.

    step: how often it went round, `start` included. ends_B: tokens of each row so far, its prompt
    included. cache: of the model.
    """

    step: jax.Array
    ends_B: jax.Array
    done_B: jax.Array
    cache: Any


MEMORY = "memory"  # of the memory's entries, that of which the cache keeps keys and values


class Loop(Protocol):
    """new_tokens: most of a row, and most steps. stops: whether rows may be done in fewer."""

    @property
    def new_tokens(self) -> int: ...

    @property
    def stops(self) -> bool: ...

    def start(self, params: Any, inputs: Inputs) -> Any:
        """The state after the prompts are read and one token is chosen."""

    def step(self, params: Any, inputs: Inputs, state: Any) -> Any:
        """The state one step later; rows that are done keep their tokens."""

    def view(self, state: Any) -> dict[str, jax.Array]:
        """`tokens` (B, T), `ends` (B,), `done` (B,) and counts (B,) of the loop's own."""


def read(
    model: nn.Module,
    params: Any,
    tokens_BS: jax.Array,
    positions_BS: jax.Array,
    cache: Any,
    memory: Mapping[str, Any],
) -> tuple[jax.Array, Any]:
    """States (B, S, D) of the tokens, and the cache with them in it.

    What the cache keeps of the memory since `prefill` is not worked out again.
    """
    known = {name: x for name, x in memory.items() if name != MEMORY}
    out: Any = model.apply(
        {"params": params}, tokens_BS, positions_BS, cache=cache, method="hidden", **known
    )
    return out[0], out[1]


def logits(model: nn.Module, params: Any, states_BSD: jax.Array) -> jax.Array:
    """Logits (B, S, V) of the whole vocabulary, on every shard."""
    out: Any = model.apply({"params": params}, states_BSD, method="head")
    found: jax.Array = out
    split = split_axis("vocab", model.config.vocab_size)
    return all_gather(found, split, 2, same=True) if split else found


def prefill(
    model: nn.Module, params: Any, inputs: Inputs, length: int, ahead: int = 1
) -> tuple[jax.Array, Any]:
    """States (B, D) of the last token of each prompt, and a cache of `length` positions.

    ahead: most tokens that are read at once from now on, those that are taken back among them.
    """
    B, longest = inputs.prompts_BP.shape
    positions_BP = jnp.arange(longest)[None] + jnp.zeros_like(inputs.prompts_BP)
    known_BP = (positions_BP < inputs.lengths_B[:, None]).astype(jnp.int32)
    room = {"memory_length": inputs.memory[MEMORY].shape[1]} if MEMORY in inputs.memory else {}
    out: Any = model.apply(
        {"params": params},
        inputs.prompts_BP,
        positions_BP,
        known_BP,
        cache=model.empty_cache(B, length, ahead=ahead, **room),
        method="hidden",
        **inputs.memory,
    )
    return out[0][jnp.arange(B), inputs.lengths_B - 1], out[1]


def room(inputs: Inputs, new_tokens: int) -> jax.Array:
    """The prompts with room for what is new, (B, T)."""
    return jnp.pad(inputs.prompts_BP, ((0, 0), (0, new_tokens)))


def is_stop(tokens: jax.Array, stop: tuple[int, ...]) -> jax.Array:
    """Which of the tokens end a row."""
    return jnp.isin(tokens, jnp.asarray(stop or (-1,), jnp.int32))


def take_rows(cache: Any, rows: jax.Array) -> Any:
    """The cache whose row i is row rows[i]."""
    return jax.tree.map(lambda x: jnp.take(x, rows, axis=1), cache)
