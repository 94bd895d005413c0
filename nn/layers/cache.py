"""Keys and values of the positions seen so far, of all layers.

A store is as long as what will be generated, or, where every layer looks back a window only, as
long as the window: position p then lies at p modulo the length, on top of one that nobody sees any
more.

Legend: L layers, B rows, G key and value heads of this shard, S places, M positions of a memory, K
head width, T new positions.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

NOWHERE = 2**30  # a position that no store reaches


class Cache(struct.PyTreeNode):
    """key, value: (L, B, G, S, K). memory_key, memory_value: those of cross attention, (L, B, G, M,
    K), or None. ahead: how many new positions may be given at once before places are used again; 0:
    they never are."""

    key: jax.Array
    value: jax.Array
    memory_key: jax.Array | None = None
    memory_value: jax.Array | None = None
    ahead: int = struct.field(pytree_node=False, default=0)

    @classmethod
    def zeros(
        cls, shape: tuple[int, ...], dtype: jnp.dtype, *, memory_length: int = 0, ahead: int = 0
    ) -> Cache:
        """shape: of `key`."""
        memory = (*shape[:3], memory_length, shape[4])
        room = cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), ahead=ahead)
        if not memory_length:
            return room
        return room.replace(
            memory_key=jnp.zeros(memory, dtype), memory_value=jnp.zeros(memory, dtype)
        )

    def covers(self, new: int) -> bool:
        """Whether all that `new` positions at once look at is in the store after `write`."""
        return not self.ahead or new <= self.ahead

    def write(
        self,
        layer: jax.Array,
        positions_BT: jax.Array,
        k_BTGK: jax.Array,
        v_BTGK: jax.Array,
        segments_BT: jax.Array | None = None,
    ) -> Cache:
        """Store new keys and values of one layer at each row's own positions.

        Those that do not fit (padding, or all but the last of a long beginning) are left out, and
        those of segment 0.
        """
        rows = jnp.arange(positions_BT.shape[0])[:, None]
        size = self.key.shape[3]
        places_BT = positions_BT
        if self.ahead:
            last_B1 = last(positions_BT, segments_BT)
            places_BT = jnp.where(positions_BT > last_B1 - size, positions_BT % size, NOWHERE)
        if segments_BT is not None:
            places_BT = jnp.where(segments_BT > 0, places_BT, NOWHERE)

        def put(store: jax.Array, new: jax.Array) -> jax.Array:
            # Places outside the store are dropped rather than clamped onto others.
            return store.at[layer, rows, :, places_BT].set(new.astype(store.dtype), mode="drop")

        return self.replace(key=put(self.key, k_BTGK), value=put(self.value, v_BTGK))

    def positions(self, positions_BT: jax.Array, segments_BT: jax.Array | None) -> jax.Array:
        """Of each place, the position whose key it holds after `write`, (B or 1, S); `NOWHERE`
        where it holds none."""
        place_1S = jnp.arange(self.key.shape[3])[None]
        if not self.ahead:
            return place_1S
        last_B1 = last(positions_BT, segments_BT)
        held_BS = last_B1 - (last_B1 - place_1S) % place_1S.shape[1]
        return jnp.where(held_BS < 0, NOWHERE, held_BS)

    def remember(self, layer: jax.Array, k_BMGK: jax.Array, v_BMGK: jax.Array) -> Cache:
        """Store the keys and values that one layer's cross attention looks at."""
        assert self.memory_key is not None and self.memory_value is not None

        def put(store: jax.Array, new: jax.Array) -> jax.Array:
            return store.at[layer].set(new.swapaxes(1, 2).astype(store.dtype))

        return self.replace(
            memory_key=put(self.memory_key, k_BMGK), memory_value=put(self.memory_value, v_BMGK)
        )

    def recall(self, layer: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values of one layer's cross attention, (B, G, M, K)."""
        assert self.memory_key is not None and self.memory_value is not None
        return self.memory_key[layer], self.memory_value[layer]


def last(positions_BT: jax.Array, segments_BT: jax.Array | None) -> jax.Array:
    """The last position of each row that is no padding (segment 0), (B, 1)."""
    if segments_BT is not None:
        positions_BT = jnp.where(segments_BT > 0, positions_BT, -1)
    return positions_BT.max(axis=1, keepdims=True)
