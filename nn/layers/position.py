"""Positions: sinusoids, rotary embeddings with their published scalings, ALiBi.

Legend: B batch, T positions, H heads, K head width, D width.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from nn import names


def sinusoids(positions_BT: jax.Array, width: int, endpoint: bool = False) -> jax.Array:
    """sin and cos of geometrically spaced frequencies, (B, T) -> (B, T, D), float32.

    Vaswani et al. 2017, section 3.5, with the sines in the first half of the width and the cosines
    in the second (a fixed permutation of the paper's interleaved order). endpoint: see
    `sinusoid_rates`.
    """
    rate = sinusoid_rates(width, endpoint)
    angle = positions_BT[..., None].astype(jnp.float32) * rate.reshape(1, 1, -1)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)[..., :width]


def sinusoid_rates(width: int, endpoint: bool = False) -> np.ndarray:
    """The angular frequencies of `sinusoids`, float32: from 1 down to almost 1/10000, or, with
    `endpoint`, to 1/10000 itself (Whisper: Radford et al. 2022)."""
    if endpoint:
        half = width // 2
        step = np.float32(-math.log(10000.0) / (half - 1))
        return np.exp(step * np.arange(half, dtype=np.float32))
    rate: np.ndarray = 10000.0 ** (-np.arange(0, width, 2, dtype=np.float32) / width)
    return rate


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Rotary embedding (Su et al. 2021): pairs (i, i + K/2) are turned by position * frequency_i.

    theta: base of the frequencies.
    scaling: how a longer context than that of training is reached:
      "none"; "linear": positions divided by `factor` (Chen et al. 2023);
      "ntk": base enlarged so that the lowest frequency is divided by `factor`;
      "yarn": a ramp between the two, and a temperature (Peng et al. 2023);
      "llama3": low frequencies divided by `factor`, a ramp, high ones kept (Llama 3, 2024).
    factor: ratio of the new context to the old.
    original_length: positions seen in training before scaling.
    low, high: ends of the ramp: turns over the original length (llama3: low_freq_factor,
      high_freq_factor; yarn: alpha, beta).
    """

    theta: float = 10000.0
    scaling: str = "none"
    factor: float = 1.0
    original_length: int = 8192
    low: float = 1.0
    high: float = 4.0

    def frequencies(self, width: int) -> tuple[np.ndarray, float]:
        """Angular frequency of each of the width/2 pairs (float64); the scale of sin and cos."""
        names.lookup("rotary scaling", self.scaling, SCALINGS)
        theta = self.theta
        if self.scaling == "ntk":
            theta *= self.factor ** (width / (width - 2))
        rate = theta ** (-np.arange(0, width, 2, dtype=np.float64) / width)
        turns = self.original_length * rate / (2 * math.pi)
        if self.scaling == "linear":
            return rate / self.factor, 1.0
        if self.scaling == "llama3":
            keep = np.clip((turns - self.low) / (self.high - self.low), 0.0, 1.0)
            return rate * keep + rate / self.factor * (1 - keep), 1.0
        if self.scaling == "yarn":
            keep = 1 - self._yarn_ramp(width)
            temperature = 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0
            return rate * keep + rate / self.factor * (1 - keep), temperature
        return rate, 1.0

    def _yarn_ramp(self, width: int) -> np.ndarray:
        """0 for pairs that turn more than `high` times, 1 below `low`, linear in the pair index."""

        def pair(turns: float) -> float:
            length = self.original_length / (turns * 2 * math.pi)
            return width * math.log(length) / (2 * math.log(self.theta))

        first = max(math.floor(pair(self.high)), 0)
        last = min(math.ceil(pair(self.low)), width - 1)
        return np.clip((np.arange(width // 2) - first) / max(last - first, 1e-3), 0.0, 1.0)

    def table(self, positions_BT: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
        """cos and sin, each (B, T, 1, K/2), float32."""
        rate, scale = self.frequencies(width)
        angle = positions_BT[..., None, None].astype(jnp.float32) * rate.astype(np.float32).reshape(
            1, 1, 1, -1
        )
        return jnp.cos(angle) * scale, jnp.sin(angle) * scale


SCALINGS = dict.fromkeys(("none", "linear", "ntk", "yarn", "llama3"))


def rotate(
    x_BTHK: jax.Array, table: tuple[jax.Array, jax.Array], interleaved: bool = False
) -> jax.Array:
    """Turn each pair of features by its angle; computed in float32.

    Features beyond those of the table stay as they are (GPT-J: Wang & Komatsuzaki 2021).
    interleaved: pairs are (2i, 2i + 1), else (i, i + K/2) of those that are turned.
    """
    cos, sin = table
    turned, rest = 2 * cos.shape[-1], x_BTHK[..., 2 * cos.shape[-1] :]
    x = x_BTHK[..., :turned].astype(jnp.float32)
    if interleaved:
        a, b = x[..., ::2], x[..., 1::2]
        y = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)
    else:
        a, b = jnp.split(x, 2, axis=-1)
        y = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    y = y.astype(x_BTHK.dtype)
    return jnp.concatenate([y, rest], axis=-1) if rest.shape[-1] else y


class Relative(struct.PyTreeNode):
    """Biases of the scores by distance in buckets (Raffel et al. 2020, T5, section 2.1).

    Half of the buckets are exact distances, the other half grow logarithmically up to
    `max_distance`; with `both_sides` one half of all is for keys that come later.

    table_NH: bias of each bucket and head of this shard.
    """

    table_NH: jax.Array
    max_distance: int = struct.field(pytree_node=False, default=128)
    both_sides: bool = struct.field(pytree_node=False, default=True)

    def bias(self, queries_BT: jax.Array, keys_BS: jax.Array) -> jax.Array:
        """From positions (B or 1, T) and (B or 1, S) to (B or 1, H, T, S), float32."""
        bucket = self._bucket(keys_BS[:, None, :] - queries_BT[:, :, None])
        return jnp.take(self.table_NH, bucket, axis=0).transpose(0, 3, 1, 2).astype(jnp.float32)

    def _bucket(self, ahead: jax.Array) -> jax.Array:
        """ahead: how far the key lies after the query."""
        buckets, first = self.table_NH.shape[0], jnp.zeros_like(ahead)
        if self.both_sides:
            buckets //= 2
            first, distance = buckets * (ahead > 0), jnp.abs(ahead)
        else:
            distance = jnp.maximum(-ahead, 0)
        exact = buckets // 2
        beyond = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact)
        beyond = beyond / math.log(self.max_distance / exact) * (buckets - exact)
        far = jnp.minimum(exact + beyond.astype(jnp.int32), buckets - 1)
        return first + jnp.where(distance < exact, distance, far)


def alibi_slopes(heads: int) -> np.ndarray:
    """Slope per head, (H,), float32: 2^(-8 i / H), i from 1 (Press et al. 2021).

    For a number of heads that is no power of two, the slopes of the next lower power come first and
    every other slope of the next higher one follows, as in the authors' code.
    """

    def powers(n: int) -> np.ndarray:
        return 2.0 ** (-8.0 * np.arange(1, n + 1) / n)

    base = 2 ** math.floor(math.log2(heads))
    slopes = np.concatenate([powers(base), powers(2 * base)[::2]])
    return slopes[:heads].astype(np.float32)
