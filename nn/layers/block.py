"""The block that transformers are stacks of: attention, attention to a memory, feed-forward.

What families differ in is told by a `Spec`: where the norms stand, which projections have biases,
how positions enter. `Seen` is what all blocks of a stack look at; `stack` makes and `run` applies
it (`nn.layers.stack`).

Legend: B batch, T positions, S positions of the memory, D residual width, F hidden width, H query
heads, G key and value heads, K head width, L layers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from nn import activations, initializers, names
from nn.layers import norm
from nn.layers.attention import QK_NORMS, Attention, Table, kv_heads_here
from nn.layers.cache import NOWHERE, Cache
from nn.layers.dense import FeedForward
from nn.layers.dropout import Dropout
from nn.layers.moe import MoE, Routing
from nn.layers.position import Relative
from nn.layers.stack import Aux, stacked
from nn.parallel import BATCH_AXES, Layer, split_axis, vary
from nn.parallel.pattern import Pattern

# pre: x + f(norm(x)) (Radford et al. 2019). post: norm(x + f(x)) (Vaswani et al. 2017). sandwich: x
# + norm(f(norm(x))) (Gemma 2, 2024). output: x + norm(f(x)) (OLMo 2, 2024).
ORDERS = dict.fromkeys(("pre", "post", "sandwich", "output"))


@dataclasses.dataclass(frozen=True)
class Experts:
    """A mixture in place of the feed-forward block; see `nn.layers.moe.MoE`."""

    routing: Routing
    hidden: int
    shared_hidden: int = 0
    shared_gate: bool = False


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a block is made of. All sizes are global."""

    layers: int
    dim: int  # residual width D
    heads: int
    kv_heads: int
    head_dim: int
    mlp_dim: int
    activation: str = "gelu_tanh"
    norm: str = "layer"  # a key of nn.layers.norm.NORMS
    norm_eps: float = 1e-5
    norm_bias: bool = True
    order: str = "pre"  # a key of ORDERS
    parallel: bool = False  # x + attention(norm(x)) + mlp(norm(x)): Wang & Komatsuzaki 2021
    shared_norm: bool = False  # of a parallel block: one norm for both
    bare_first: bool = False  # the first layer's attention has no norm before it (ModernBERT, 2024)
    causal: bool = True
    cross: bool = False  # attention to a memory, between the two others
    bias: bool = True  # in attention and feed-forward
    unbiased: tuple[str, ...] = ()  # of query, key, value, out, mlp: without all the same
    qk_norm: str = "none"  # none | head | row: see nn.layers.attention.Attention
    scale: float = 0.0  # of the scores; 0: 1 / sqrt(head_dim)
    attention_factor: float = 1.0  # of the scores, besides `scale`
    soft_cap: float = 0.0  # of the scores
    interleaved: bool = False  # pairs of features that the rotary embedding turns
    alibi: bool = False
    windows: tuple[int, ...] = (0,)  # of the layers in turn; 0: no limit
    layer_scale: float = 0.0  # first factor of each branch (Touvron et al. 2021); 0: none
    branch_factor: float = 1.0  # of what each branch adds to the residual
    dropout: float = 0.0  # of what is added to the residual
    attention_dropout: float = 0.0  # of the attention weights
    mlp_dropout: float = 0.0  # of the hidden units
    init_std: float = 0.02
    out_std: float = 0.02  # of the weights that write to the residual
    experts: Experts | None = None

    def __post_init__(self) -> None:
        names.lookup("norm", self.norm, norm.NORMS)
        names.lookup("order of norms", self.order, ORDERS)
        names.lookup("norm of queries and keys", self.qk_norm, QK_NORMS)
        activations.get(self.activation)

    @property
    def score_scale(self) -> float:
        """Of `nn.layers.attention.Attention`, with the factor."""
        if self.attention_factor == 1:
            return self.scale
        return (self.scale or self.head_dim**-0.5) * self.attention_factor

    def window(self, layer: jax.Array) -> int | jax.Array:
        """Of one layer, for `Pattern`."""
        if len(set(self.windows)) == 1:
            return self.windows[0]
        limits = np.asarray([w or NOWHERE for w in self.windows], np.int32)
        return jnp.asarray(limits)[layer % len(limits)]

    def cache(self, batch: int, length: int, dtype: Any, memory: int = 0, ahead: int = 0) -> Cache:
        """Room for `length` positions of `batch` rows, of this shard's heads only.

        memory: positions of the memory. ahead: most tokens that are given at once after the prompt:
          then layers with windows keep no more than these. 0: no promise is made.
        """
        split = [axis] if (axis := split_axis("heads")) else []
        reach = max(self.windows) + ahead - 1
        short = ahead > 0 and min(self.windows) > 0 and reach < length
        heads = kv_heads_here(self.heads, self.kv_heads)
        shape = (self.layers, batch, heads, reach if short else length, self.head_dim)
        room = Cache.zeros(shape, dtype, memory_length=memory, ahead=ahead if short else 0)
        return vary(room, (*BATCH_AXES, *split))


def factors(specs: Sequence[Spec], bases: Sequence[Spec]) -> dict[str, float]:
    """The factors that make scores and branches of a model's stacks as large as those of its base
    (`nn.learning.parametrisation`): of scores 1 / K in place of 1 / sqrt(K), of branches 1 / L.

    Raises:
      ValueError: stacks that want different factors, or branches that are normed when they are
        added, whose size no factor changes.
    """
    found: dict[str, float] = {}
    for spec, base in zip(specs, bases, strict=True):
        own, theirs = ((s.scale or s.head_dim**-0.5) * s.head_dim for s in (spec, base))
        here = {"attention_factor": theirs / own, "branch_factor": base.layers / spec.layers}
        if spec.order == "post" and spec.layers != base.layers:
            raise ValueError(
                f"scale.rule: blocks whose norm is after their sum (order 'post') have no rule for "
                f"{spec.layers} layers beside {base.layers}; nearest: as many as in scale.base"
            )
        if not all(math.isclose(value, here[name]) for name, value in found.items()):
            raise ValueError(
                f"scale.rule: the stacks of this model want factors of their own, {found} and "
                f"{here}; nearest: depth and width of heads that grow alike in all stacks"
            )
        found = here
    return found


class Seen(struct.PyTreeNode):
    """What every block of a stack looks at.

    positions_BT: of all positions of the block. segments_BT: documents, or 0 for padding.
    rotary: tables of the layers without a window and with one, or one for all, or none.
    memory_BSD, memory_segments_BS: for attention to a memory. relative: biases by distance.
    """

    positions_BT: jax.Array
    segments_BT: jax.Array | None = None
    rotary: tuple[Table, ...] = ()
    memory_BSD: jax.Array | None = None
    memory_segments_BS: jax.Array | None = None
    relative: Relative | None = None


class Block(Layer):
    """One layer of a stack; the carry is (x (B, T, D), cache)."""

    spec: Spec
    train: bool = False

    @nn.compact
    def __call__(
        self, carry: tuple[jax.Array, Cache | None], layer: jax.Array, seen: Seen
    ) -> tuple[tuple[jax.Array, Cache | None], Aux]:
        s = self.spec
        x_BTD, cache = carry
        normed_BTD = self._before("attention", x_BTD, layer)
        h_BTD, cache = self._attention(normed_BTD, layer, seen, cache)
        if s.parallel:
            other = normed_BTD if s.shared_norm else self._before("mlp", x_BTD)
            y_BTD, aux = self._feed_forward(other)
            x_BTD = x_BTD + self._branch("attention", h_BTD) + self._branch("mlp", y_BTD)
        else:
            x_BTD = self._after("attention", x_BTD, h_BTD)
            if s.cross:
                h_BTD, cache = self._cross(self._before("cross", x_BTD), layer, seen, cache)
                x_BTD = self._after("cross", x_BTD, h_BTD)
            h_BTD, aux = self._feed_forward(self._before("mlp", x_BTD))
            x_BTD = self._after("mlp", x_BTD, h_BTD)
        self.sow("intermediates", "residual", x_BTD)
        return (x_BTD, cache), aux

    def _norm(self, name: str, x_BTD: jax.Array) -> jax.Array:
        s = self.spec
        return norm.make(s.norm, s.norm_eps, s.norm_bias, name)(x_BTD)

    def _before(self, name: str, x_BTD: jax.Array, layer: jax.Array | None = None) -> jax.Array:
        """The input of a branch."""
        if self.spec.order not in ("pre", "sandwich"):
            return x_BTD
        normed_BTD = self._norm(f"{name}_norm", x_BTD)
        if self.spec.bare_first and layer is not None:
            return jnp.where(layer == 0, x_BTD, normed_BTD)
        return normed_BTD

    def _branch(self, name: str, h_BTD: jax.Array) -> jax.Array:
        """What a branch adds to the residual."""
        s = self.spec
        if s.order in ("sandwich", "output"):
            h_BTD = self._norm(f"{name}_out_norm", h_BTD)
        if s.layer_scale:
            first = initializers.constant(s.layer_scale)
            h_BTD = h_BTD * self.weight(f"{name}_scale", (s.dim,), (None,), first).beside(h_BTD)
        if s.branch_factor != 1:
            h_BTD = h_BTD * jnp.asarray(s.branch_factor, h_BTD.dtype)
        return Dropout(s.dropout, ("batch", "tokens", None), self.train)(h_BTD)

    def _after(self, name: str, x_BTD: jax.Array, h_BTD: jax.Array) -> jax.Array:
        x_BTD = x_BTD + self._branch(name, h_BTD)
        return self._norm(f"{name}_norm", x_BTD) if self.spec.order == "post" else x_BTD

    def _make_attention(self, name: str, **options: Any) -> Attention:
        s = self.spec
        return Attention(
            heads=s.heads,
            kv_heads=s.kv_heads,
            head_dim=s.head_dim,
            bias=s.bias,
            unbiased=s.unbiased,
            scale=s.score_scale,
            soft_cap=s.soft_cap,
            dropout=s.attention_dropout,
            train=self.train,
            kernel_init=initializers.normal(s.init_std),
            out_init=initializers.normal(s.out_std),
            name=name,
            **options,
        )

    def _attention(
        self, x_BTD: jax.Array, layer: jax.Array, seen: Seen, cache: Cache | None
    ) -> tuple[jax.Array, Cache | None]:
        s = self.spec
        module = self._make_attention(
            "attention",
            qk_norm=s.qk_norm,
            norm_eps=s.norm_eps,
            norm_offset=1.0 if s.norm == "rms_one" else 0.0,
            interleaved=s.interleaved,
            alibi=s.alibi,
        )
        return module(
            x_BTD,
            seen.positions_BT,
            Pattern(s.causal, s.window(layer)),
            seen.segments_BT,
            self._rotary(layer, seen.rotary),
            cache=cache,
            layer=layer,
            relative=seen.relative,
        )

    def _rotary(self, layer: jax.Array, tables: tuple[Table, ...]) -> Table | None:
        """That of this layer."""
        if len(tables) < 2:
            return tables[0] if tables else None
        windows = self.spec.windows
        local = jnp.asarray([w > 0 for w in windows])[layer % len(windows)]
        (cos, sin), (local_cos, local_sin) = tables
        return jnp.where(local, local_cos, cos), jnp.where(local, local_sin, sin)

    def _cross(
        self, x_BTD: jax.Array, layer: jax.Array, seen: Seen, cache: Cache | None
    ) -> tuple[jax.Array, Cache | None]:
        segments_BT = seen.segments_BT
        if seen.memory_segments_BS is None:
            segments_BT = None
        elif segments_BT is None:  # every query sees all of the memory but its padding
            segments_BT = jnp.ones_like(seen.positions_BT)
        return self._make_attention("cross", cross=True)(
            x_BTD,
            seen.positions_BT,
            segments_BT=segments_BT,
            memory_BSD=seen.memory_BSD,
            memory_segments_BS=seen.memory_segments_BS,
            cache=cache,
            layer=layer,
        )

    def _feed_forward(self, x_BTD: jax.Array) -> tuple[jax.Array, Aux]:
        s = self.spec
        wide, narrow = initializers.normal(s.init_std), initializers.normal(s.out_std)
        if s.experts is None:
            mlp = FeedForward(
                s.mlp_dim,
                activation=s.activation,
                bias=s.bias and "mlp" not in s.unbiased,
                dropout=s.mlp_dropout,
                train=self.train,
                kernel_init=wide,
                down_init=narrow,
                name="mlp",
            )
            return mlp(x_BTD), {}
        y_BTD, aux = MoE(
            s.experts.routing,
            hidden=s.experts.hidden,
            activation=s.activation,
            shared_hidden=s.experts.shared_hidden,
            shared_gate=s.experts.shared_gate,
            train=self.train,
            kernel_init=wide,
            down_init=narrow,
            name="moe",
        )(x_BTD)
        # The stack adds up over its layers: of metrics, unlike losses, the mean is wanted.
        return y_BTD, {k: v if k == "loss" else v / s.layers for k, v in aux.items()}


def stack(
    spec: Spec,
    train: bool = False,
    remat: str = "none",
    saved: tuple[str, ...] = (),
    unroll: int = 1,
    name: str | None = None,
) -> nn.Module:
    """A stack of blocks; see `nn.layers.stack.stacked`. Apply it with `run`, whose `derive` gives a
    one-tuple of `Seen`."""
    return stacked(Block, spec.layers, 1, remat, unroll, saved)(spec, train, name=name)
