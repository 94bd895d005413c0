"""Generation with a key-value cache: one compiled loop over tokens, on any mesh.

Legend: B rows, P longest prompt, N new tokens, T = P + N, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from nn import parallel
from nn.parallel import BATCH_AXES, split_axis
from nn.parallel.collectives import all_gather


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    temperature: 0 takes the likeliest token. top_k: of the k likeliest only (0: all).
    top_p: of the smallest set whose probability reaches p (Holtzman et al. 2020; 1: all).
    stop: tokens that end a row; they are kept in the output.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    stop: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature={self.temperature}: must be 0 or more")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k}: must be 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: must be in (0, 1]")


def sample(logits_BV: jax.Array, keys_B: jax.Array, how: Sampling) -> jax.Array:
    """One token per row, (B,) int32; each row has a key of its own."""
    if how.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = logits_BV.astype(jnp.float32) / how.temperature
    if how.top_k and how.top_k < logits_BV.shape[-1]:
        kth = jax.lax.top_k(logits_BV, how.top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV < kth, -jnp.inf, logits_BV)
    if how.top_p < 1:
        sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
        probability = jax.nn.softmax(sorted_BV, axis=-1)
        # Keep a token while the mass *before* it is short of p: the first is always kept.
        kept = jnp.cumsum(probability, axis=-1) - probability < how.top_p
        least = jnp.min(jnp.where(kept, sorted_BV, jnp.inf), axis=-1, keepdims=True)
        logits_BV = jnp.where(logits_BV < least, -jnp.inf, logits_BV)
    return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)


def generate(
    model: nn.Module,
    params: Any,
    prompts_BP: jax.Array,
    lengths_B: jax.Array,
    seed: jax.Array,
    rows_B: jax.Array,
    *,
    new_tokens: int,
    how: Sampling,
) -> tuple[jax.Array, jax.Array]:
    """Continue each row by up to `new_tokens` tokens.

    Args:
      prompts_BP: tokens, padded on the right; lengths_B: tokens of each prompt, at least 1.
      seed: uint32 key data; rows_B: global number of each row, so that noise follows the row.
    Returns:
      tokens (B, T), each row's new tokens right after its prompt; and the new lengths (B,).
    """
    B, longest = prompts_BP.shape
    variables = {"params": params}
    batch = jnp.arange(B)
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.wrap_key_data(seed), rows_B)

    def logits_of(hidden_BD: jax.Array) -> jax.Array:
        logits_B1V: Any = model.apply(variables, hidden_BD[:, None], method="head")
        logits: jax.Array = logits_B1V[:, 0]
        split = split_axis("vocab", model.config.vocab_size)
        return all_gather(logits, split, 1, same=True) if split else logits

    def hidden_of(tokens: jax.Array, positions: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        out: Any = model.apply(variables, tokens, positions, cache=cache, method="hidden")
        return out[0], out[1]

    cache = model.empty_cache(B, longest + new_tokens)
    positions_BP = jnp.arange(longest)[None] + jnp.zeros_like(prompts_BP)
    hidden, cache = hidden_of(prompts_BP, positions_BP, cache)
    tokens_BT = jnp.pad(prompts_BP, ((0, 0), (0, new_tokens)))
    stop = jnp.asarray(how.stop or (-1,), jnp.int32)

    def unfinished(carry: Any) -> jax.Array:
        step, done_B = carry[0], carry[4]
        return (step < new_tokens) & ~_all_rows(done_B)

    def body(carry: Any) -> Any:
        step, tokens_BT, ends_B, last_BD, done_B, cache = carry
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys_B, step)
        token_B = sample(logits_of(last_BD), keys, how)
        kept_B = tokens_BT[batch, ends_B]
        tokens_BT = tokens_BT.at[batch, ends_B].set(jnp.where(done_B, kept_B, token_B))
        hidden, cache = hidden_of(token_B[:, None], ends_B[:, None], cache)
        ends_B = jnp.where(done_B, ends_B, ends_B + 1)
        done_B = done_B | jnp.isin(token_B, stop)
        return step + 1, tokens_BT, ends_B, hidden[:, 0], done_B, cache

    last_BD = hidden[batch, lengths_B - 1]
    done_B = lengths_B < 0  # none, with the type of the rows
    carry = (jnp.zeros((), jnp.int32), tokens_BT, lengths_B, last_BD, done_B, cache)
    _, tokens_BT, ends_B, *_ = jax.lax.while_loop(unfinished, body, carry)
    return tokens_BT, ends_B


def _all_rows(done_B: jax.Array) -> jax.Array:
    """Whether every row of every shard is done: all shards must leave the loop together."""
    open_rows = jnp.sum(~done_B)
    return parallel.psum(open_rows, BATCH_AXES) == 0


def compiled(
    model: nn.Module,
    mesh: jax.sharding.Mesh,
    rules: parallel.Rules,
    param_specs: Any,
    new_tokens: int,
    how: Sampling,
) -> Any:
    """`(params, prompts, lengths, seed, rows) -> (tokens, lengths)`, jitted, rows over the mesh."""
    # One token at a time leaves no sequence to split.
    rules = dataclasses.replace(rules, sequence_parallel=False)
    rows = P(parallel.mesh.present(mesh, BATCH_AXES) or None)

    def run(params: Any, prompts: Any, lengths: Any, seed: Any, ids: Any) -> Any:
        return generate(model, params, prompts, lengths, seed, ids, new_tokens=new_tokens, how=how)

    spread = parallel.spmd(run, mesh, rules, (param_specs, rows, rows, P(), rows), (rows, rows))
    # On every device, so that every process can read them.
    return jax.jit(spread, out_shardings=NamedSharding(mesh, P()))
