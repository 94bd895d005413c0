"""From logits to the next token: what is kept, in the order of transformers' processors.

Repetition penalty, the caller's own rule, temperature, top-k, top-p, min-p. The last three keep the
tokens whose logits reach some floor, so that all of them together are one comparison.

Legend: B rows, T tokens of the longest row, V vocabulary, K kept by top-k.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

# (logits (B, V), tokens (B, T), ends (B,), made (B,)) -> logits (B, V). Row b has `ends` tokens so
# far, of which it made the last `made`. A pure function of these: beams change places between
# steps, and a state of its own would not follow them.
Processor = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    temperature: 0 takes the likeliest token. top_k: of the k likeliest only (0: all).
    top_p: of the smallest set whose probability reaches p (Holtzman et al. 2020; 1: all).
    stop: tokens that end a row; they are kept in the output.
    min_p: of tokens at least this likely, relative to the likeliest (Nguyen et al. 2024; 0: all).
    repetition_penalty: divides the positive logits of tokens that the row has, prompt included, and
      multiplies the negative ones (Keskar et al. 2019; 1: none).
    beams: hypotheses per row; 1: no beam search. It takes the likeliest: temperature=0.
    length_penalty: a finished beam counts as its log-probability / (new tokens ^ length_penalty).
    early_stopping: a row ends as soon as it has `beams` finished ones; else when the likeliest open
      one, at its present length, is no better than the worst of them.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    stop: tuple[int, ...] = ()
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature={self.temperature}: must be finite and 0 or more")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k}: must be 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: must be in (0, 1]")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p={self.min_p}: must be in [0, 1]")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(
                f"repetition_penalty={self.repetition_penalty}: must be finite and above 0"
            )
        if self.beams < 1:
            raise ValueError(f"beams={self.beams}: must be 1 (no beam search) or more")
        if not math.isfinite(self.length_penalty):
            raise ValueError(f"length_penalty={self.length_penalty}: must be finite")
        if self.beams > 1 and self.temperature:
            raise ValueError(
                f"beams={self.beams} with temperature={self.temperature}: must be 0, for beam "
                "search takes the likeliest tokens; nearest: temperature=0"
            )


def adjust(
    logits_BV: jax.Array,
    tokens_BT: jax.Array,
    ends_B: jax.Array,
    lengths_B: jax.Array,
    how: Sampling,
    processor: Processor | None,
) -> jax.Array:
    """What changes logits however the token is chosen; lengths_B: tokens of the prompts."""
    if how.repetition_penalty != 1:
        logits_BV = penalize(logits_BV, tokens_BT, ends_B, how.repetition_penalty)
    if processor is not None:
        logits_BV = processor(logits_BV, tokens_BT, ends_B, ends_B - lengths_B)
    return logits_BV


def penalize(
    logits_BV: jax.Array, tokens_BT: jax.Array, ends_B: jax.Array, penalty: float
) -> jax.Array:
    """The repetition penalty, on tokens that a row has among its first `ends`."""
    V = logits_BV.shape[-1]
    there_BT = jnp.arange(tokens_BT.shape[1])[None] < ends_B[:, None]
    x_BT = jnp.take_along_axis(logits_BV, tokens_BT, axis=1)
    x_BT = jnp.where(x_BT < 0, x_BT * penalty, x_BT / penalty)
    rows = jnp.arange(len(logits_BV))[:, None]
    # Token V is none; a token that comes twice is set twice, to the same.
    return logits_BV.at[rows, jnp.where(there_BT, tokens_BT, V)].set(x_BT, mode="drop")


def shaped(logits_BV: jax.Array, how: Sampling) -> jax.Array:
    """Logits of the distribution that is drawn from, float32; -inf where a token is left out.

    temperature must be above 0. Tokens that tie with the last one kept are kept too.
    """
    logits_BV = logits_BV.astype(jnp.float32) / how.temperature
    floors = []
    sorted_BK = None
    if how.top_k and how.top_k < logits_BV.shape[-1]:
        sorted_BK = jax.lax.top_k(logits_BV, how.top_k)[0]
        floors.append(sorted_BK[:, -1:])
    if how.top_p < 1:
        if sorted_BK is None:
            sorted_BK = jnp.sort(logits_BV, axis=-1, descending=True)
        probability = jax.nn.softmax(sorted_BK, axis=-1)
        # Keep a token while the mass *before* it is short of p: the first is always kept.
        kept = jnp.cumsum(probability, axis=-1) - probability < how.top_p
        floors.append(jnp.min(jnp.where(kept, sorted_BK, jnp.inf), axis=-1, keepdims=True))
    if how.min_p:
        # Relative to the likeliest: what top-k and top-p leave of the mass makes no difference.
        floors.append(jnp.max(logits_BV, axis=-1, keepdims=True) + math.log(how.min_p))
    for floor_B1 in floors:
        logits_BV = jnp.where(logits_BV < floor_B1, -jnp.inf, logits_BV)
    return logits_BV


def likeliest(logits_BV: jax.Array) -> jax.Array:
    """The first of the largest logits of each row, int32."""
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)


def sample(logits_BV: jax.Array, keys_B: jax.Array, how: Sampling) -> jax.Array:
    """One token per row, (B,) int32; each row has a key of its own."""
    if how.temperature == 0:
        return likeliest(logits_BV)
    return draw(shaped(logits_BV, how), keys_B)


def draw(logits_BV: jax.Array, keys_B: jax.Array) -> jax.Array:
    """One token per row from the distribution that has these logits, (B,) int32."""
    return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)
