"""Feed-forward networks of experts on rows that are grouped by expert: no row is padded or dropped.

On TPUs and GPUs `jax.lax.ragged_dot` multiplies each group by its own matrix. On CPUs it multiplies
every row by every matrix, so there each group is filled up to whole blocks of rows, and each block
meets one matrix (Gale et al. 2023, MegaBlocks, has the same blocks as sparse products).

Legend: N tokens, D width, K choices per token, E experts here, F hidden units here, S slots, C
blocks, b rows of a block.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nn.parallel.expert import back, place, ranks
from nn.parallel.mesh import platform

BLOCK = 128  # rows


def feed_forward(
    activation: Callable[..., jax.Array],
    up: list[jax.Array],
    down_EFD: jax.Array,
    x_ND: jax.Array,
    group_NK: jax.Array,
    bound: int,
) -> jax.Array:
    """activation(x up, ...) down with the matrices of each choice, (N, K, D).

    Args:
      up: (E, D, F), what the activation takes: gate and up, or up alone.
      group_NK: the expert of each choice; E for none, whose result is 0.
      bound: at most so many choices are an expert.
    """
    experts = down_EFD.shape[0]
    rank_NK, sizes_E = ranks(group_NK, experts)
    block = block_rows(bound, experts)
    rooms_E = -(-sizes_E // block) * block
    ends_E = jnp.cumsum(rooms_E)
    # Every group that is not empty may need one block more than its rows fill.
    size = bound if block == 1 else (bound // block + min(bound, experts)) * block
    there = group_NK < experts
    group = jnp.where(there, group_NK, 0)
    slot_NK = jnp.where(there, (ends_E - rooms_E)[group] + rank_NK, size)

    def dot(x_SI: jax.Array, w_EIO: jax.Array) -> jax.Array:
        if block == 1:
            return jax.lax.ragged_dot(x_SI, w_EIO, sizes_E.astype(jnp.int32))
        return _block_dot(x_SI, w_EIO, ends_E, block)

    rows_SD = place(x_ND, slot_NK, size)
    h_SF = activation(*(dot(rows_SD, w_EDF) for w_EDF in up))
    return back(dot(h_SF, down_EFD), slot_NK)


def block_rows(rows: int, groups: int) -> int:
    """Rows to which each group is filled up; 1: none is, `ragged_dot` takes them as they are."""
    return 1 if platform() != "cpu" else max(8, min(BLOCK, rows // max(groups, 1)))


def _block_dot(x_SI: jax.Array, w_EIO: jax.Array, ends_E: jax.Array, block: int) -> jax.Array:
    """Each block of rows times the matrix of its group; blocks after the last group hold zeros."""
    starts_C = jnp.arange(0, x_SI.shape[0], block)
    group_C = jnp.searchsorted(ends_E, starts_C, side="right", method="compare_all")
    w_CIO = w_EIO[jnp.minimum(group_C, w_EIO.shape[0] - 1)]
    y_CbO = jnp.einsum("cbi,cio->cbo", x_SI.reshape(-1, block, x_SI.shape[1]), w_CIO)
    return y_CbO.reshape(x_SI.shape[0], -1)
