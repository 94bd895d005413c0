"""Beam search (Graves 2012; Sutskever et al. 2014), with the rules by which transformers ends it.

Of all continuations of a row's K open beams the likeliest are looked at. Those among the first K
that end (a stop token, or no room left) join the K best finished ones, by log-probability over
(new tokens ^ length_penalty); the likeliest K that do not end stay open.

Legend: B rows, K beams, C candidates, T tokens of the longest row, D width of the states,
V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from launch.run import reading
from launch.run.logits import Processor, Sampling, adjust
from launch.run.reading import Inputs, State
from nn.parallel import BATCH_AXES, vary

NEVER = -1e9  # log-probability of what must not be chosen; finite, so that sums stay ordered


class Beams(State):
    """open_*: the open beams and their log-probabilities, likeliest first; best_*: the finished
    ones and what they are worth, best first. The cache has B * K rows."""

    open_BKT: jax.Array
    open_BK: jax.Array
    best_BKT: jax.Array
    best_BK: jax.Array
    best_ends_BK: jax.Array


@dataclasses.dataclass(frozen=True)
class Beam:
    model: nn.Module
    how: Sampling
    new_tokens: int
    processor: Processor | None = None

    stops = True

    def start(self, params: Any, inputs: Inputs) -> Beams:
        K = self.how.beams
        tokens_BT = reading.room(inputs, self.new_tokens)
        B, T = tokens_BT.shape
        states_BD, cache = reading.prefill(self.model, params, inputs, T)
        tokens_BKT = jnp.repeat(tokens_BT[:, None], K, axis=1)
        # Of K equal beams one counts.
        first_BK = jnp.full((B, K), NEVER).at[:, 0].set(0.0)
        unfinished_BK, no_ends_BK, none_B = vary(
            (jnp.full((B, K), NEVER), jnp.zeros((B, K), jnp.int32), jnp.zeros((B,), bool)),
            BATCH_AXES,
        )
        state = Beams(
            step=jnp.zeros((), jnp.int32),
            ends_B=inputs.lengths_B,
            done_B=none_B,
            open_BKT=tokens_BKT,
            open_BK=vary(first_BK, BATCH_AXES),
            best_BKT=tokens_BKT,
            best_BK=unfinished_BK,
            best_ends_BK=no_ends_BK,
            cache=reading.take_rows(cache, jnp.repeat(jnp.arange(B), K)),
        )
        return self._append(params, inputs, state, jnp.repeat(states_BD, K, axis=0))

    def step(self, params: Any, inputs: Inputs, state: Beams) -> Beams:
        B, K, T = state.open_BKT.shape
        last_N1 = jnp.repeat(state.ends_B, K)[:, None] - 1
        token_N1 = jnp.take_along_axis(state.open_BKT.reshape(B * K, T), last_N1, axis=1)
        memory = jax.tree.map(lambda x: jnp.repeat(x, K, axis=0), inputs.memory)
        states_N1D, cache = reading.read(self.model, params, token_N1, last_N1, state.cache, memory)
        return self._append(params, inputs, state.replace(cache=cache), states_N1D[:, 0])

    def _append(self, params: Any, inputs: Inputs, state: Beams, states_ND: jax.Array) -> Beams:
        """Choose among the continuations, sort them into open and finished ones."""
        B, K = state.open_BK.shape
        candidates_BCT, value_BC, parents_BC = self._candidates(params, inputs, state, states_ND)
        made_B = state.ends_B + 1 - inputs.lengths_B
        token_BC = jnp.take_along_axis(candidates_BCT, state.ends_B[:, None, None], axis=2)[..., 0]
        full_B1 = (made_B >= self.new_tokens)[:, None]
        ends_BC = reading.is_stop(token_BC, self.how.stop) | full_B1

        open_BK, kept_BK = jax.lax.top_k(jnp.where(ends_BC, value_BC + NEVER, value_BC), K)
        parents_BK = jnp.take_along_axis(parents_BC, kept_BK, axis=1)
        rows_N = (jnp.arange(B)[:, None] * K + parents_BK).reshape(-1)

        counts_BC = ends_BC & (jnp.arange(ends_BC.shape[1]) < K)[None] & ~state.done_B[:, None]
        worth_BC = value_BC / made_B[:, None].astype(jnp.float32) ** self.how.length_penalty
        best_BK, best = jax.lax.top_k(
            jnp.concatenate([state.best_BK, jnp.where(counts_BC, worth_BC, NEVER)], axis=1), K
        )
        found_ends_BC = jnp.zeros_like(token_BC) + state.ends_B[:, None] + 1
        best_ends_BC = jnp.concatenate([state.best_ends_BK, found_ends_BC], axis=1)
        best_BCT = jnp.concatenate([state.best_BKT, candidates_BCT], axis=1)
        return state.replace(
            step=state.step + 1,
            ends_B=state.ends_B + 1,
            done_B=state.done_B | full_B1[:, 0] | self._closed(open_BK, best_BK, made_B),
            open_BKT=jnp.take_along_axis(candidates_BCT, kept_BK[..., None], axis=1),
            open_BK=open_BK,
            best_BKT=jnp.take_along_axis(best_BCT, best[..., None], axis=1),
            best_BK=best_BK,
            best_ends_BK=jnp.take_along_axis(best_ends_BC, best, axis=1),
            cache=reading.take_rows(state.cache, rows_N),
        )

    def _candidates(
        self, params: Any, inputs: Inputs, state: Beams, states_ND: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Likeliest continuations of a row, best first: tokens, log-probabilities, their beams.

        Of s stop tokens at most s K can end K beams: with (s + 1) K candidates K go on.
        """
        B, K, T = state.open_BKT.shape
        logits_NV = reading.logits(self.model, params, states_ND[:, None])[:, 0]
        log_NV = adjust(
            jax.nn.log_softmax(logits_NV.astype(jnp.float32)),
            state.open_BKT.reshape(B * K, T),
            jnp.repeat(state.ends_B, K),
            jnp.repeat(inputs.lengths_B, K),
            self.how,
            self.processor,
        )
        V = log_NV.shape[1]
        total_BW = (log_NV.reshape(B, K, V) + state.open_BK[..., None]).reshape(B, K * V)
        wanted = max(2, 1 + len(self.how.stop)) * K
        value_BC, index_BC = jax.lax.top_k(total_BW, min(wanted, K * V))
        parents_BC, token_BC = index_BC // V, (index_BC % V).astype(jnp.int32)
        tokens_BCT = jnp.take_along_axis(state.open_BKT, parents_BC[..., None], axis=1)
        here_B1T = jnp.arange(T)[None, None] == state.ends_B[:, None, None]
        return jnp.where(here_B1T, token_BC[..., None], tokens_BCT), value_BC, parents_BC

    def _closed(self, open_BK: jax.Array, best_BK: jax.Array, made_B: jax.Array) -> jax.Array:
        """Rows that have K finished beams and are content with them."""
        full_B = best_BK[:, -1] > NEVER / 2
        if self.how.early_stopping:
            return full_B
        hope_B = open_BK[:, 0] / made_B.astype(jnp.float32) ** self.how.length_penalty
        return full_B & (hope_B <= best_BK[:, -1])

    def view(self, state: Beams) -> dict[str, jax.Array]:
        return {
            "tokens": state.best_BKT[:, 0],
            "ends": state.best_ends_BK[:, 0],
            "done": state.done_B,
        }
