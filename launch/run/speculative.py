"""Speculative decoding (Leviathan et al. 2023, algorithm 1; Chen et al. 2023, algorithm 2).

A small model drafts k tokens, one after another; the large one reads them all at once and keeps
them up to the first that it would not have written, which it replaces. What comes out has the
distribution of the large model alone, and is the same text where the likeliest token is taken.

Legend: B rows, k draft tokens, S = k + 1, T tokens of the longest row, D width of the states,
V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from launch.run import reading
from launch.run.logits import Processor, Sampling, adjust, draw, likeliest, sample, shaped
from launch.run.reading import Inputs, State


class Drafted(State):
    """draft_cache: of the small model. offered_B, accepted_B: draft tokens of each row so far."""

    draft_cache: Any
    tokens_BT: jax.Array
    offered_B: jax.Array
    accepted_B: jax.Array


@dataclasses.dataclass(frozen=True)
class Speculative:
    """params are `{"model": ..., "draft": ...}`; both models have the same vocabulary.

    A cache keeps what it was told at positions that are then refused: it is overwritten when the
    row gets there, and not looked at before.
    """

    model: nn.Module
    draft: nn.Module
    how: Sampling
    new_tokens: int
    draft_length: int
    processor: Processor | None = None

    stops = True

    def __post_init__(self) -> None:
        if self.draft_length < 1:
            raise ValueError(f"--draft-length={self.draft_length}: must be at least 1")
        if self.how.beams > 1:
            raise ValueError(
                f"beams={self.how.beams} with a draft model: must be 1, for a beam has no one text "
                "to draft; nearest: --num-beams=1, or no --draft"
            )
        sizes = self.model.config.vocab_size, self.draft.config.vocab_size
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"the draft model has {sizes[1]} tokens: must be the {sizes[0]} of the model"
            )

    def start(self, params: Any, inputs: Inputs) -> Drafted:
        tokens_BT = reading.room(inputs, self.new_tokens)
        B, T = tokens_BT.shape
        ahead = self.draft_length + 1
        states_BD, cache = reading.prefill(self.model, params["model"], inputs, T, ahead)
        _, draft_cache = reading.prefill(self.draft, params["draft"], inputs, T, ahead)
        lengths_B = inputs.lengths_B
        logits_BV = reading.logits(self.model, params["model"], states_BD[:, None])[:, 0]
        logits_BV = adjust(logits_BV, tokens_BT, lengths_B, lengths_B, self.how, self.processor)
        token_B = sample(logits_BV, inputs.keys(0), self.how)
        none_B = 0 * lengths_B
        return Drafted(
            step=jnp.ones((), jnp.int32),
            ends_B=lengths_B + 1,
            done_B=reading.is_stop(token_B, self.how.stop) | (none_B + 1 >= self.new_tokens),
            cache=cache,
            draft_cache=draft_cache,
            tokens_BT=tokens_BT.at[jnp.arange(B), lengths_B].set(token_B),
            offered_B=none_B,
            accepted_B=none_B,
        )

    def step(self, params: Any, inputs: Inputs, state: Drafted) -> Drafted:
        keys_B = inputs.keys(state.step)
        tokens_BT, draft_cache, q_BkV = self._write(params["draft"], inputs, state, keys_B)
        cache, logits_BSV = self._judge(params["model"], inputs, state, tokens_BT)
        B, S = logits_BSV.shape[:2]
        places_BS = state.ends_B[:, None] + jnp.arange(S)[None]
        draft_BS = jnp.take_along_axis(tokens_BT, self._within(places_BS, tokens_BT), axis=1)
        token_BS, good_B = self._verdict(draft_BS[:, :-1], q_BkV, logits_BSV, keys_B)

        room_B = inputs.lengths_B + self.new_tokens - state.ends_B
        number_1S = jnp.arange(S)[None]
        stop_BS = reading.is_stop(token_BS, self.how.stop)
        # A stop token that is kept is the last one.
        last_B = jnp.min(jnp.where(stop_BS, number_1S, S), axis=1)
        made_B = jnp.minimum(jnp.minimum(good_B, last_B) + 1, room_B)
        made_B = jnp.where(state.done_B, 0, made_B)
        places_BS = jnp.where(number_1S < made_B[:, None], places_BS, tokens_BT.shape[1])
        live_B = (~state.done_B).astype(jnp.int32)
        ends_B = state.ends_B + made_B
        return state.replace(
            step=state.step + 1,
            ends_B=ends_B,
            done_B=state.done_B | (made_B == room_B) | (made_B > last_B),
            cache=cache,
            draft_cache=draft_cache,
            tokens_BT=state.tokens_BT.at[jnp.arange(B)[:, None], places_BS].set(
                token_BS, mode="drop"
            ),
            offered_B=state.offered_B + live_B * self.draft_length,
            accepted_B=state.accepted_B + live_B * good_B,
        )

    def _within(self, places: jax.Array, tokens_BT: jax.Array) -> jax.Array:
        """Places past the end of the longest row, where nothing is kept, become its last one.

        What is read there is wanted by no token that is kept: the last place chooses none.
        """
        return jnp.minimum(places, tokens_BT.shape[1] - 1)

    def _write(
        self, params: Any, inputs: Inputs, state: Drafted, keys_B: jax.Array
    ) -> tuple[jax.Array, Any, jax.Array | None]:
        """The rows with k draft tokens at their ends, the cache of the draft model, and the
        probabilities by which they were drawn, (B, k, V); of the likeliest tokens, None."""

        def one(carry: tuple[jax.Array, Any], i: jax.Array) -> tuple[tuple[jax.Array, Any], Any]:
            tokens_BT, cache = carry
            ends_B = state.ends_B + i
            # The last two tokens: of a draft that was kept whole, the last one was never read.
            places_B2 = self._within(ends_B[:, None] + jnp.arange(-2, 0)[None], tokens_BT)
            token_B2 = jnp.take_along_axis(tokens_BT, places_B2, axis=1)
            states_B2D, cache = reading.read(
                self.draft, params, token_B2, places_B2, cache, inputs.memory
            )
            logits_BV = reading.logits(self.draft, params, states_B2D[:, 1:])[:, 0]
            logits_BV = self._adjusted(logits_BV, tokens_BT, ends_B, inputs)
            keys = jax.vmap(jax.random.fold_in, (0, None))(keys_B, i)
            if self.how.temperature == 0:
                token_B, q = likeliest(logits_BV), None
            else:
                logits_BV = shaped(logits_BV, self.how)
                token_B, q = draw(logits_BV, keys), jax.nn.softmax(logits_BV)
            rows = jnp.arange(len(token_B))
            tokens_BT = tokens_BT.at[rows, ends_B].set(token_B, mode="drop")
            return (tokens_BT, cache), q

        carry = (state.tokens_BT, state.draft_cache)
        (tokens_BT, cache), q_kBV = jax.lax.scan(one, carry, jnp.arange(self.draft_length))
        return tokens_BT, cache, None if q_kBV is None else q_kBV.swapaxes(0, 1)

    def _adjusted(
        self, logits_BV: jax.Array, tokens_BT: jax.Array, ends_B: jax.Array, inputs: Inputs
    ) -> jax.Array:
        return adjust(logits_BV, tokens_BT, ends_B, inputs.lengths_B, self.how, self.processor)

    def _judge(
        self, params: Any, inputs: Inputs, state: Drafted, tokens_BT: jax.Array
    ) -> tuple[Any, jax.Array]:
        """What the large model would have written after each token of the draft, (B, S, V)."""
        number_S = jnp.arange(self.draft_length + 1)
        places_BS = self._within(state.ends_B[:, None] - 1 + number_S[None], tokens_BT)
        token_BS = jnp.take_along_axis(tokens_BT, places_BS, axis=1)
        states_BSD, cache = reading.read(
            self.model, params, token_BS, places_BS, state.cache, inputs.memory
        )
        logits_BSV = reading.logits(self.model, params, states_BSD)

        def at(logits_BV: jax.Array, i: jax.Array) -> jax.Array:
            return self._adjusted(logits_BV, tokens_BT, state.ends_B + i, inputs)

        return cache, jax.vmap(at, in_axes=(1, 0), out_axes=1)(logits_BSV, number_S)

    def _verdict(
        self, draft_Bk: jax.Array, q_BkV: jax.Array | None, logits_BSV: jax.Array, keys_B: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Tokens (B, S), and how many of the draft are among them, the first ones: one more of
        those tokens counts, the large model's own."""
        B, S, V = logits_BSV.shape
        if q_BkV is None:
            token_BS = likeliest(logits_BSV)
            return token_BS, _leading(token_BS[:, :-1] == draft_Bk)
        p_BSV = jax.nn.softmax(shaped(logits_BSV.reshape(B * S, V), self.how)).reshape(B, S, V)
        key_B2 = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, S)))(keys_B)
        u_Bk = jax.vmap(lambda key: jax.random.uniform(key, (S - 1,)))(key_B2[:, 0])

        def of_draft(x_BkV: jax.Array) -> jax.Array:
            return jnp.take_along_axis(x_BkV, draft_Bk[..., None], axis=2)[..., 0]

        good_B = _leading(u_Bk * of_draft(q_BkV) < of_draft(p_BSV[:, :-1]))
        # After the whole draft nothing was offered: what is left is all of p.
        left_BSV = jnp.maximum(p_BSV - jnp.pad(q_BkV, ((0, 0), (0, 1), (0, 0))), 0.0)
        # Of p and q that differ by rounding only nothing may be left.
        left_BSV = jnp.where(jnp.any(left_BSV > 0, axis=2, keepdims=True), left_BSV, p_BSV)
        left_BV = jnp.take_along_axis(left_BSV, good_B[:, None, None], axis=1)[:, 0]
        own_B = draw(jnp.log(left_BV), key_B2[:, 1])
        token_BS = jnp.pad(draft_Bk, ((0, 0), (0, 1)))
        return jnp.where(jnp.arange(S)[None] == good_B[:, None], own_B[:, None], token_BS), good_B

    def view(self, state: Drafted) -> dict[str, jax.Array]:
        return {
            "tokens": state.tokens_BT,
            "ends": state.ends_B,
            "done": state.done_B,
            "offered": state.offered_B,
            "accepted": state.accepted_B,
        }


def _leading(good_Bk: jax.Array) -> jax.Array:
    """How many are true before the first that is not, (B,)."""
    return jnp.sum(jnp.cumprod(good_Bk.astype(jnp.int32), axis=1), axis=1)
