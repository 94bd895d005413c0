"""The plain-Linen peer: textbook modules on one device, no sharding, no tricks.

GPT-2 (Radford et al. 2019) and ResNet-18 (He et al. 2016), `nn.Dense`, `nn.LayerNorm`, einsum
attention, layers unrolled, optax.adamw, a donated state.

Legend: B batch, T positions, D width, H heads, K head width.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from launch.bench import jax_job
from launch.bench.job import Job
from launch.bench.workloads import B1, B2, CLIP, DECAY, EPS, RATE, Images, Text

device = jax_job.device


class Block(nn.Module):
    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        B, T, D = x.shape
        h = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)(x)
        qkv = nn.Dense(3 * D, dtype=self.dtype)(h)
        q, k, v = (a.reshape(B, T, self.heads, -1) for a in jnp.split(qkv, 3, axis=-1))
        scores = jnp.einsum("bthk,bshk->bhts", q, k) / (D // self.heads) ** 0.5
        causal = jnp.tril(jnp.ones((1, 1, T, T), bool))
        scores = jnp.where(causal, scores.astype(jnp.float32), -1e30)
        weights = nn.softmax(scores).astype(self.dtype)
        h = jnp.einsum("bhts,bshk->bthk", weights, v).reshape(B, T, D)
        x = x + nn.Dense(D, dtype=self.dtype)(h)
        h = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)(x)
        h = nn.gelu(nn.Dense(4 * D, dtype=self.dtype)(h))
        return x + nn.Dense(D, dtype=self.dtype)(h)


class GPT(nn.Module):
    size: Text
    dtype: Any

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        s = self.size
        embed = nn.Embed(s.vocabulary, s.dim, dtype=self.dtype)
        positions = nn.Embed(s.length, s.dim, dtype=self.dtype)
        x = embed(tokens) + positions(jnp.arange(tokens.shape[1])[None])
        for _ in range(s.layers):
            x = Block(s.heads, self.dtype)(x)
        return embed.attend(nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)(x))


def decoder(size: Text, where: str) -> Job:
    """A training step of the GPT."""
    model = GPT(size, _dtype(where))
    tokens = size.tokens()
    params = jax.jit(model.init)(jax.random.key(0), tokens[:, :-1])

    def loss(params: Any, statistics: Any, batch: Any) -> Any:
        inputs, targets = batch
        out: Any = model.apply(params, inputs)
        logits = out.astype(jnp.float32)
        per_token = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return per_token.mean(), statistics

    return _train(loss, params, None, (tokens[:, :-1], tokens[:, 1:]), where)


class Unit(nn.Module):
    """The basic block of ResNet: two 3x3 convolutions and a shortcut."""

    channels: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def normed(x: jax.Array) -> jax.Array:
            return nn.BatchNorm(use_running_average=False, momentum=0.9, dtype=self.dtype)(x)

        def conv(x: jax.Array, window: int, stride: int) -> jax.Array:
            return nn.Conv(
                self.channels,
                (window, window),
                stride,
                padding=window // 2,
                use_bias=False,
                dtype=self.dtype,
            )(x)

        h = nn.relu(normed(conv(x, 3, self.stride)))
        h = normed(conv(h, 3, 1))
        if x.shape != h.shape:
            x = normed(conv(x, 1, self.stride))
        return nn.relu(x + h)


class ResNet18(nn.Module):
    classes: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(64, (7, 7), 2, padding=3, use_bias=False, dtype=self.dtype)(x)
        x = nn.BatchNorm(use_running_average=False, momentum=0.9, dtype=self.dtype)(x)
        x = nn.max_pool(nn.relu(x), (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for stage in range(4):
            for block in range(2):
                stride = 2 if stage > 0 and block == 0 else 1
                x = Unit(64 * 2**stage, stride, self.dtype)(x)
        return nn.Dense(self.classes, dtype=self.dtype)(x.mean(axis=(1, 2)))


def resnet18(size: Images, where: str) -> Job:
    """A training step of ResNet-18, running statistics included."""
    model = ResNet18(size.classes, _dtype(where))
    images, labels = size.examples()
    variables = jax.jit(model.init)(jax.random.key(0), images)
    params = {"params": variables["params"]}

    def loss(params: Any, statistics: Any, batch: Any) -> Any:
        images, labels = batch
        logits, updated = model.apply({**params, **statistics}, images, mutable=["batch_stats"])
        logits = logits.astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updated

    return _train(loss, params, {"batch_stats": variables["batch_stats"]}, (images, labels), where)


def _train(loss: Any, params: Any, statistics: Any, batch: Any, where: str) -> Job:
    def decays(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, x: getattr(path[-1], "key", "") == "kernel", params
        )

    optimizer = optax.chain(
        optax.clip_by_global_norm(CLIP),
        optax.adamw(RATE, B1, B2, EPS, weight_decay=DECAY, mask=decays),
    )

    def step(state: Any, batch: Any) -> Any:
        params, statistics, opt_state = state
        (value, statistics), grads = jax.value_and_grad(loss, has_aux=True)(
            params, statistics, batch
        )
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), statistics, opt_state), value

    state = (params, statistics, jax.jit(optimizer.init)(params))
    return jax_job.trainer(
        jax.jit(step, donate_argnums=0),
        state,
        jax.device_put(batch),
        where,
        jax_job.size_of(params),
    )


def _dtype(where: str) -> Any:
    return jnp.float32 if where == "cpu" else jnp.bfloat16
