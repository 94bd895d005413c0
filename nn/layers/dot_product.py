"""Dot-product attention of queries with keys that are all here, on one device.

Legend: B batch, T query positions, S key positions, H query heads, G key and value heads, R = H / G
queries per key head, K width of queries and keys.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nn.layers.dropout import Dropout


def attend(
    q_BTHK: jax.Array,
    k_BGSK: jax.Array,
    v_BGSK: jax.Array,
    mask: jax.Array | None,
    bias: jax.Array | None = None,
    dropout: Dropout | None = None,
    causal: bool = False,
    *,
    scale: float = 0.0,
    soft_cap: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """softmax(scale q k^T + bias) v; Vaswani et al. 2017, eq. 1; scores in float32.

    Args:
      mask: bool, broadcasts to (B, 1, T, S); bias: float, broadcasts to (B, H, T, S).
      causal: T = S and the mask lets no query see a later column: those that no query of a part of
        the row sees are left out of its products.
      scale: 0: 1 / sqrt(K). soft_cap: see `capped`; 0: no cap.
    Returns:
      (B, T, H, K), and the attention weights (B, H, T, S).
    """
    B, T, H, K = q_BTHK.shape
    G, S = k_BGSK.shape[1:3]
    # Dropout's mask is one of the whole row.
    parts = _parts(T) if causal and dropout is None else 1
    rows = T // parts
    q = q_BTHK * jnp.asarray(scale or K**-0.5, q_BTHK.dtype)
    q_BGRTK = q.reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4)
    outs, weights = [], []
    for start in range(0, T, rows):
        end = start + rows
        seen = S if parts == 1 else end
        out, own = _attend_part(
            q_BGRTK[:, :, :, start:end],
            k_BGSK[:, :, :seen],
            v_BGSK[:, :, :seen],
            None if mask is None else mask[:, :, start:end, :seen],
            None if bias is None else bias[:, :, start:end, :seen],
            dropout,
            soft_cap,
        )
        outs.append(out)
        weights.append(jnp.pad(own, ((0, 0), (0, 0), (0, 0), (0, S - seen))))
    out_BGRTK = jnp.concatenate(outs, axis=3)
    out = out_BGRTK.transpose(0, 3, 1, 2, 4).reshape(B, T, H, K)
    return out, jnp.concatenate(weights, axis=2)


def _parts(length: int) -> int:
    """Into how many parts a causal row is cut: at most 4, of at least 64 queries.

    With 4 parts 5/8 of the products are left; more of them would be small ones.
    """
    return next(n for n in (4, 2, 1) if n == 1 or (length % n == 0 and length // n >= 64))


def _attend_part(
    q_BGRTK: jax.Array,
    k_BGSK: jax.Array,
    v_BGSK: jax.Array,
    mask: jax.Array | None,
    bias: jax.Array | None,
    dropout: Dropout | None,
    soft_cap: float,
) -> tuple[jax.Array, jax.Array]:
    """`attend` of some queries, scaled already: (B, G, R, T, K) and the weights (B, H, T, S)."""
    B, G, R, T, K = q_BGRTK.shape
    S = k_BGSK.shape[2]
    # Queries that share a key head are rows of one product.
    scores = jnp.einsum(
        "bgnk,bgsk->bgns",
        q_BGRTK.reshape(B, G, -1, K),
        k_BGSK,
        preferred_element_type=jnp.float32,
    ).reshape(B, G * R, T, S)
    scores = capped(scores, soft_cap)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        # A sum: its backward pass, unlike that of a choice, has nothing to do.
        scores = scores + jnp.where(mask, 0.0, -1e30)
    mass = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    total = mass.sum(axis=-1, keepdims=True)
    if dropout is not None:
        mass = dropout(mass)
    # Divided after the product, where there are K numbers to a row and not S.
    out = jnp.einsum(
        "bgns,bgsk->bgnk",
        mass.reshape(B, G, -1, S).astype(v_BGSK.dtype),
        v_BGSK,
        preferred_element_type=jnp.float32,
    )
    out_BGRTK = out.reshape(B, G, R, T, K) / total.reshape(B, G, R, T, 1)
    return out_BGRTK.astype(v_BGSK.dtype), (mass / total).astype(v_BGSK.dtype)


def capped(x: jax.Array, cap: float) -> jax.Array:
    """cap tanh(x / cap), which stays within +-cap (Bello et al. 2017; Gemma 2, 2024); 0: x."""
    return cap * jnp.tanh(x / cap) if cap else x
