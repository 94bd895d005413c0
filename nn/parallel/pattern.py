"""Which query may look at which key: a description, and the mask that is made of it.

A mask of all pairs is made only where the scores of all pairs are; attention that goes block by
block makes the mask of a block.

Legend: B batch, T queries, S keys.
"""

from __future__ import annotations

import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class Pattern:
    """causal: no query sees a later key. window: a query sees itself and window - 1 positions
    before it (Beltagy et al. 2020; on both sides when not causal); 0: no limit. In a stack whose
    layers differ it is a number above 0 of the trace."""

    causal: bool = False
    window: int | jax.Array = 0

    @property
    def windowed(self) -> bool:
        return not isinstance(self.window, int) or self.window > 0


def attention_mask(
    query_positions: jax.Array,
    key_positions: jax.Array,
    *,
    causal: bool,
    window: int | jax.Array = 0,
    query_segments: jax.Array | None = None,
    key_segments: jax.Array | None = None,
) -> jax.Array | None:
    """Which query may look at which key: bool (B or 1, 1, T, S), or None for "all".

    positions: (B or 1, T) and (B or 1, S). causal, window: see `Pattern`.
    segments: documents of a packed row; a query sees its own only.
    """
    distance = query_positions[:, :, None] - key_positions[:, None, :]
    allowed = []
    if causal:
        allowed.append(distance >= 0)
    if Pattern(causal, window).windowed:
        allowed.append(distance < window)
        if not causal:
            allowed.append(distance > -window)
    if query_segments is not None and key_segments is not None:
        allowed.append(query_segments[:, :, None] == key_segments[:, None, :])
    if not allowed:
        return None
    mask = allowed[0]
    for more in allowed[1:]:
        mask = mask & more
    return mask[:, None]
