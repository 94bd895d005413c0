"""Mixture of experts: a router chooses k feed-forward networks for each token.

Shazeer et al. 2017 (top-k), Fedus et al. 2022 (Switch: balance loss, capacity, jitter), Zoph et al.
2022 (ST-MoE: z-loss), Jiang et al. 2024 (Mixtral), DeepSeek-AI 2024 (V2: groups; V3: sigmoid
scores, balance by a bias without a loss), Dai et al. 2024 (shared experts). Nothing is dropped
unless there is a capacity: rows are sorted by expert (`nn.layers.grouped`) and go where their
experts are (`nn.parallel.expert`).

Legend: B batch, T positions, D residual width, F hidden width of an expert, E experts, K choices
of a token, G groups of experts, N tokens, M microbatches.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from nn import activations, initializers, names
from nn.layers import grouped
from nn.layers.dense import Dense, FeedForward
from nn.layers.dropout import indices, split_axes
from nn.parallel import BATCH_AXES, Layer, enter, split_axis, vary
from nn.parallel.collectives import pmean, psum, shards
from nn.parallel.expert import dispatch, ranks
from nn.parallel.mesh import current_rules
from nn.parallel.random import is_part, key_here, positional_bits
from nn.parallel.tensor import leave_sum
from nn.parallel.weight import Initializer

SCORES = dict.fromkeys(("softmax", "sigmoid", "softmax_of_chosen"))
GROUP_SCORES = dict.fromkeys(("max", "top2"))
# Tokens are split over these; where sequence parallelism is off, they do not vary over tensor.
TOKEN_AXES = (*BATCH_AXES, "context", "tensor")

Aux = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Routing:
    """How a token chooses its experts, and what keeps them evenly loaded.

    scores: softmax | sigmoid over all experts, or softmax_of_chosen: over those of the k largest
      logits (equal to softmax with `normalize`).
    normalize: the k weights are divided by their sum. scale: factor of them after that.
    groups, top_groups: choose from the best top_groups of so many groups of experts only
      (DeepSeek-V2, section 2.2.2); group_score: by the largest score of a group, or the sum of its
      two largest (V3, section 2.1.2).
    bias_rate: step of a bias per expert that is added to the scores when experts are chosen, not to
      the weights: up where the last batch gave an expert less than the mean, down where it gave
      more (Wang et al. 2024, algorithm 1); 0: no bias.
    jitter: in training the router's input is multiplied by noise in 1 +- jitter (Switch, appendix).
    balance_loss, z_loss: coefficients of `balance_loss` and `z_loss`, per layer.
    capacity: an expert takes at most capacity N K / E of the N tokens of a shard, first choices
      first (Switch, eq. 3); what is over adds nothing to the residual stream. This depends on the
      mesh, as N does. 0: no limit.
    """

    experts: int
    top_k: int = 2
    scores: str = "softmax"
    normalize: bool = True
    scale: float = 1.0
    groups: int = 1
    top_groups: int = 1
    group_score: str = "max"
    bias_rate: float = 0.0
    jitter: float = 0.0
    balance_loss: float = 0.0
    z_loss: float = 0.0
    capacity: float = 0.0

    def __post_init__(self) -> None:
        names.lookup("router_scores", self.scores, SCORES)
        names.lookup("router_group_score", self.group_score, GROUP_SCORES)
        if self.groups < 1 or self.experts % self.groups:
            raise ValueError(
                f"router_groups={self.groups} does not divide num_experts={self.experts}; nearest "
                f"that does: {names.nearest_divisor(self.experts, self.groups)}"
            )
        if not 1 <= self.top_groups <= self.groups:
            raise ValueError(
                f"router_top_groups={self.top_groups}: must be at least 1 and at most "
                f"router_groups={self.groups}; nearest: {min(max(self.top_groups, 1), self.groups)}"
            )
        most = self.experts // self.groups * self.top_groups
        if not 1 <= self.top_k <= most:
            raise ValueError(
                f"experts_per_token={self.top_k}: must be at least 1 and at most the {most} "
                f"experts that can be chosen; nearest: {min(max(self.top_k, 1), most)}"
            )
        if self.group_score == "top2" and self.experts // self.groups < 2:
            raise ValueError("router_group_score='top2' needs groups of 2 experts; nearest: 'max'")
        for field in ("bias_rate", "jitter", "balance_loss", "z_loss", "capacity"):
            if getattr(self, field) < 0:
                raise ValueError(f"router {field}={getattr(self, field)}: must be at least 0")


def route(
    r: Routing, logits_BTE: jax.Array, bias_E: jax.Array | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Chosen experts (B, T, K), their weights (B, T, K), and probabilities over all (B, T, E).

    logits: float32. The probabilities, of `balance_loss`, are the scores divided by their sum.
    """
    scores = jax.nn.sigmoid(logits_BTE) if r.scores == "sigmoid" else jax.nn.softmax(logits_BTE)
    wanted = jax.lax.stop_gradient(scores)
    if bias_E is not None:
        wanted = wanted + bias_E.reshape(1, 1, -1)
    if r.top_groups < r.groups:
        wanted = _best_groups(r, wanted)
    expert_BTK = jax.lax.top_k(wanted, r.top_k)[1]
    if r.scores == "softmax_of_chosen":
        weight_BTK = jax.nn.softmax(jnp.take_along_axis(logits_BTE, expert_BTK, axis=-1))
    else:
        weight_BTK = jnp.take_along_axis(scores, expert_BTK, axis=-1)
    if r.normalize:
        weight_BTK = weight_BTK / (weight_BTK.sum(axis=-1, keepdims=True) + 1e-20)
    if r.scores == "sigmoid":
        scores = scores / (scores.sum(axis=-1, keepdims=True) + 1e-20)
    return expert_BTK, weight_BTK * r.scale, scores


def _best_groups(r: Routing, wanted_BTE: jax.Array) -> jax.Array:
    """The scores with those of all but the best groups at -inf."""
    B, T, E = wanted_BTE.shape
    grouped_BTGe = wanted_BTE.reshape(B, T, r.groups, E // r.groups)
    best = jax.lax.top_k(grouped_BTGe, 1 if r.group_score == "max" else 2)[0].sum(axis=-1)
    chosen = jax.lax.top_k(best, r.top_groups)[1]
    kept_BTG = jax.nn.one_hot(chosen, r.groups, dtype=jnp.bool_).any(axis=-2)
    return jnp.where(kept_BTG[..., None], grouped_BTGe, -jnp.inf).reshape(B, T, E)


def z_loss(logits_BTE: jax.Array) -> jax.Array:
    """Mean over all tokens of the squared log-partition (ST-MoE, eq. 5)."""
    return pmean(jnp.mean(jnp.square(jax.nn.logsumexp(logits_BTE, axis=-1))), TOKEN_AXES)


def loads(expert_BTK: jax.Array, experts: int, parts: int = 1) -> jax.Array:
    """Choices of each expert in each part of the *global* batch, (M, E) float32."""
    _, T, K = expert_BTK.shape
    hit = jax.nn.one_hot(expert_BTK.reshape(-1, parts, T, K), experts)
    return psum(jnp.sum(hit, axis=(0, 2, 3)), TOKEN_AXES)


def balance_loss(loads_ME: jax.Array, probabilities_BTE: jax.Array) -> jax.Array:
    """E sum_e f_e P_e of each part of the global batch (Switch, eq. 4 to 6), the mean over parts.

    f_e: choices of expert e per token, as transformers has it; they add up to K, so that the loss
    of a uniform router is K (1 in Switch, where K is 1). P_e: mean probability of e. Both are those
    of the global batch before they are multiplied, hence the same on any mesh.
    """
    M, E = loads_ME.shape
    B, T, _ = probabilities_BTE.shape
    mass_ME = probabilities_BTE.reshape(B // M, M, T, E).sum(axis=(0, 2))
    tokens = B // M * T * shards(mass_ME, TOKEN_AXES)
    f_ME = jax.lax.stop_gradient(loads_ME) / tokens
    return E * jnp.mean(jnp.sum(f_ME * psum(mass_ME, TOKEN_AXES) / tokens, axis=-1))


def parts_here(batch: int) -> int:
    """Microbatches among the rows here: one inside a pipeline, which goes through them one by one.

    Example i is in microbatch i mod M. A batch that they do not divide, as when decoding, is one.
    """
    parts = current_rules().microbatches
    return 1 if is_part() or batch % parts else parts


class MoE(Layer):
    """y = sum over the chosen experts of weight * FFN_e(x), and what all tokens share.

    hidden: F. activation: a gated one takes three matrices per expert; there are no biases.
    shared_hidden: hidden units of a feed-forward block that every token goes through (the shared
      experts side by side); shared_gate: its output is multiplied by sigmoid(x w) (Qwen Team 2024).
    """

    routing: Routing
    hidden: int
    activation: str = "swiglu"
    shared_hidden: int = 0
    shared_gate: bool = False
    train: bool = False
    kernel_init: Initializer = initializers.normal(0.02)
    down_init: Initializer = initializers.normal(0.02)

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> tuple[jax.Array, Aux]:
        """(B, T, D) -> (B, T, D) and scalars, the same on every shard.

        "loss", in training only: the weighted sum of the auxiliary losses. "load_balance" and
        "router_z": the losses themselves; "busiest": largest load over mean load; "dropped": share
        of the choices that found no room.
        """
        r = self.routing
        logits_BTE = self._logits(x_BTD)
        bias = None
        if r.bias_rate:
            bias = self.statistic("bias", (r.experts,), (None,), 0.0, "statistics")
        expert, weight, probabilities = route(r, logits_BTE, bias.value if bias else None)
        loads_ME = loads(expert, r.experts, parts_here(x_BTD.shape[0]))
        loads_E = loads_ME.sum(axis=0)
        self.sow("intermediates", "loads", loads_E)
        if bias is not None and self.train and not self.is_initializing():
            bias.value = bias.value + r.bias_rate * jnp.sign(loads_E.mean() - loads_E)
        balance, z = balance_loss(loads_ME, probabilities), z_loss(logits_BTE)
        y_BTD, dropped = self._experts(x_BTD, expert, weight)
        aux = {
            "load_balance": balance,
            "router_z": z,
            "busiest": jnp.mean(loads_ME.max(axis=-1) / loads_ME.mean(axis=-1)),
            "dropped": dropped,
        }
        if self.train:
            aux["loss"] = r.balance_loss * balance + r.z_loss * z
        return y_BTD + self._shared(x_BTD) if self.shared_hidden else y_BTD, aux

    def _logits(self, x_BTD: jax.Array) -> jax.Array:
        """In float32, whatever the model computes in (Switch, section 2.4)."""
        x = x_BTD.astype(jnp.float32)
        jitter, tokens = self.routing.jitter, ("batch", "tokens", None)
        if self.train and jitter:
            split = [split_axes(name) for name in tokens]
            places = [indices(name, size) for name, size in zip(tokens, x.shape, strict=True)]
            bits = positional_bits(key_here(self.make_rng("dropout")), x.shape, split, places)
            x = x * (1.0 + jitter * (2.0**-31 * bits.astype(jnp.float32) - 1.0))
        shape = (x.shape[-1], self.routing.experts)
        kernel = self.weight("router_kernel", shape, ("embed", None), self.kernel_init)
        return jnp.einsum("btd,de->bte", x, kernel.whole(like=x), precision="highest")

    def _experts(
        self, x_BTD: jax.Array, expert_BTK: jax.Array, weight_BTK: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """What the chosen experts add, and the share of the choices that were dropped."""
        r, D = self.routing, x_BTD.shape[-1]
        split = split_axis("mlp")
        x, expert, weight = (enter(a, "mlp") for a in (x_BTD, expert_BTK, weight_BTK))
        if split is not None:  # the sum of their gradients is over tokens, not over choices
            x, weight = vary((x, weight), [split])
        B, T, K = expert.shape
        N = B * T
        expert, limit, dropped = expert.reshape(N, K), N, jnp.zeros(())
        if r.capacity:
            limit = min(N, math.ceil(r.capacity * N * K / r.experts))
            fits = ranks(expert, r.experts)[0] < limit
            dropped = pmean(1.0 - jnp.mean(fits, dtype=jnp.float32), TOKEN_AXES)
            expert = jnp.where(fits, expert, r.experts)
        gated = activations.is_gated(self.activation)
        wide = ("expert", "embed", "mlp")
        up = [
            self.weight(f"{name}_kernel", (r.experts, D, self.hidden), wide, self.kernel_init)
            for name in (("gate", "up") if gated else ("up",))
        ]
        back = ("expert", "mlp", "embed")
        down = self.weight("down_kernel", (r.experts, self.hidden, D), back, self.down_init)
        compute = functools.partial(
            grouped.feed_forward,
            activations.get(self.activation),
            [w.whole(like=x) for w in up],
            down.whole(like=x),
        )
        y = dispatch(compute, x.reshape(N, D), expert, weight.reshape(N, K), r.experts, limit)
        return leave_sum(y.reshape(B, T, D), down.split_over(1)), dropped

    def _shared(self, x_BTD: jax.Array) -> jax.Array:
        y_BTD = FeedForward(
            hidden=self.shared_hidden,
            activation=self.activation,
            bias=False,
            kernel_init=self.kernel_init,
            down_init=self.down_init,
            name="shared",
        )(x_BTD)
        if not self.shared_gate:
            return y_BTD
        gate = Dense(1, names=("embed", None), bias=False, name="shared_gate")(x_BTD)
        return y_BTD * jax.nn.sigmoid(gate)
