"""Two towers that put images and texts into one space: CLIP and SigLIP.

Radford et al. 2021: a vision transformer with a norm before its blocks, read at its class token,
and a causal text transformer, read at the token that ends a text. Zhai et al. 2023: no class token
but attention pooling, and a text transformer that looks both ways, read at its last place.

Legend: B images, A texts, T tokens, D width of a tower, E width of the common space, H heads, K
head width, C classes, P texts of a class.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from nn import activations, initializers, names
from nn.layers import block, embed
from nn.layers.block import Seen
from nn.layers.dense import Dense
from nn.layers.norm import LayerNorm
from nn.layers.patches import ImageTokens, Row, check_sizes, grid_of, pooled, shared_out
from nn.layers.stack import remat_policy, run
from nn.parallel import BATCH_AXES, Layer, axis_index, einsum, leave, psum, vary
from nn.parallel.collectives import pmax
from nn.parallel.pipeline import PIPE, between_stages, stages
from nn.parallel.sequence import columns
from nn.parallel.tensor import sequence_axes

KINDS = dict.fromkeys(("clip", "siglip"))
FAR = -1e30  # a score that counts nothing


@dataclasses.dataclass(frozen=True)
class Config:
    kind: str = "clip"  # clip | siglip: see the top of this file
    image_size: tuple[int, ...] = (224, 224)  # height and width of training, pixels
    patch_size: tuple[int, ...] = (32, 32)  # height and width, pixels
    in_channels: int = 3
    image_dim: int = 768  # residual width of the image tower
    image_layers: int = 12
    image_heads: int = 12
    image_mlp_dim: int = 0  # hidden units of its feed-forward blocks; 0: 4 * image_dim
    image_activation: str = "quick_gelu"
    vocab_size: int = 49408  # tokens
    context_length: int = 77  # tokens of a text, at most
    text_dim: int = 512  # residual width of the text tower
    text_layers: int = 12
    text_heads: int = 8
    text_mlp_dim: int = 0  # hidden units of its feed-forward blocks; 0: 4 * text_dim
    text_activation: str = "quick_gelu"
    # token that ends a text, of clip; -1: the highest token of a text, whatever it is
    end_token: int = -1
    embed_dim: int = 512  # width E of the common space; siglip: that of the image tower
    norm_eps: float = 1e-5
    logit_scale: float = 2.6592  # first logarithm of the factor of similarities
    logit_bias: float = -10.0  # first bias of similarities, of siglip
    attention_dropout: float = 0.0  # probability: attention weights
    attention_factor: float = 1.0  # of the scores besides; scale.rule sets it
    branch_factor: float = 1.0  # of what a branch adds to the residual; scale.rule sets it
    init_std: float = 0.02  # of weights
    remat: str = "none"  # none | block | dots | names | offload: see nn/layers/stack.py
    # what names keeps and offload sends to the host: these, or mlp
    remat_names: tuple[str, ...] = ("query", "key", "value", "attention")
    scan_unroll: int = 1  # layers per iteration of the loop over depth; 0: all of them

    def __post_init__(self) -> None:
        for field in ("in_channels", "vocab_size", "context_length", "embed_dim"):
            if getattr(self, field) < 1:
                raise ValueError(f"model.{field}={getattr(self, field)}: must be at least 1")
        for tower in ("image", "text"):
            dim, heads = getattr(self, f"{tower}_dim"), getattr(self, f"{tower}_heads")
            if min(dim, heads, getattr(self, f"{tower}_layers")) < 1 or dim % heads:
                raise ValueError(
                    f"model.{tower}_heads={heads} does not divide model.{tower}_dim={dim}; "
                    f"nearest that does: {names.nearest_divisor(max(dim, 1), heads)}"
                )
            activations.get(getattr(self, f"{tower}_activation"))
        check_sizes(self.image_size, self.patch_size)
        names.lookup("model.kind", self.kind, KINDS)
        if self.kind == "siglip" and self.embed_dim != self.image_dim:
            raise ValueError(
                f"model.embed_dim={self.embed_dim}: images of kind 'siglip' are not projected; "
                f"nearest: {self.image_dim}, which is model.image_dim"
            )
        remat_policy(self.remat, self.remat_names)

    @property
    def num_heads(self) -> int:
        """Of both towers, what shards may divide."""
        return math.gcd(self.image_heads, self.text_heads)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along the height and the width."""
        return grid_of(self.image_size, self.patch_size)

    def tower(self, name: str) -> block.Spec:
        """The blocks of the "image" or the "text" tower."""
        dim, heads = getattr(self, f"{name}_dim"), getattr(self, f"{name}_heads")
        return block.Spec(
            layers=getattr(self, f"{name}_layers"),
            dim=dim,
            heads=heads,
            kv_heads=heads,
            head_dim=dim // heads,
            mlp_dim=getattr(self, f"{name}_mlp_dim") or 4 * dim,
            activation=getattr(self, f"{name}_activation"),
            norm_eps=self.norm_eps,
            causal=name == "text" and self.kind == "clip",
            attention_dropout=self.attention_dropout,
            attention_factor=self.attention_factor,
            branch_factor=self.branch_factor,
            init_std=self.init_std,
            out_std=self.init_std,
        )

    def factors(self, base: Config) -> dict[str, float]:
        """What `nn.learning.parametrisation` sets, beside a smaller model."""
        own, theirs = ([c.tower(name) for name in ("image", "text")] for c in (self, base))
        return block.factors(own, theirs)


class AttentionPool(Layer):
    """One learned query that looks at all patches, and a feed-forward block after it.

    Zhai et al. 2022, "Scaling vision transformers", section 2.1. Its heads are whole on every
    shard: each has scores of its own tokens, and only sums of H and D numbers go over the mesh.
    """

    spec: block.Spec

    @nn.compact
    def __call__(self, x_BTD: jax.Array, row: Row) -> jax.Array:
        """(B, D) of tokens between blocks after the last layer."""
        s = self.spec
        init = initializers.normal(s.init_std)
        probe = self.weight("probe", (s.dim,), (None,), init)
        p_1D = probe.beside(x_BTD)[0]
        q_HK = self._project("query", p_1D[None], "btd,dhk->bthk")[0, 0]
        k_BTHK = self._project("key", x_BTD, "btd,dhk->bthk")
        v_BTHK = self._project("value", x_BTD, "btd,dhk->bthk")
        scale = s.score_scale or s.head_dim**-0.5
        scores_BTH = jnp.einsum(
            "hk,bthk->bth", q_HK * scale, k_BTHK, preferred_element_type=jnp.float32
        )
        seen_BT = row.patch_BT > 0
        if stages() > 1:  # only the last one has them
            seen_BT = seen_BT & (axis_index(PIPE) == stages() - 1)
        scores_BTH = jnp.where(seen_BT[..., None], scores_BTH, FAR)
        axes = (PIPE, *sequence_axes())
        top_BH = pmax(jax.lax.stop_gradient(scores_BTH.max(axis=1)), axes)
        mass_BTH = jnp.exp(scores_BTH - top_BH[:, None])
        mass_BTH = jnp.where(seen_BT[..., None], mass_BTH, 0.0)
        total_BH = psum(mass_BTH.sum(axis=1), axes)
        out_BHK = psum(jnp.einsum("bth,bthk->bhk", mass_BTH, v_BTHK.astype(jnp.float32)), axes)
        out_BHK = (out_BHK / total_BH[..., None]).astype(x_BTD.dtype)
        out = self.weight("out_kernel", (*out_BHK.shape[1:], s.dim), (None, None, "embed"), init)
        y_BD = einsum("bhk,hkd->bd", out_BHK, out)
        y_BD = y_BD + self.weight("out_bias", (s.dim,), (None,), initializers.zeros).beside(y_BD)
        h_BD = LayerNorm(s.norm_eps, name="norm")(y_BD)
        h_BF = activations.get(s.activation)(Dense(s.mlp_dim, kernel_init=init, name="up")(h_BD))
        down = Dense(s.dim, ("mlp", "embed"), in_features=s.mlp_dim, kernel_init=init, name="down")
        return y_BD + down(h_BF)

    def _project(self, name: str, x_BTD: jax.Array, equation: str) -> jax.Array:
        s = self.spec
        shape, init = (s.dim, s.heads, s.head_dim), initializers.normal(s.init_std)
        kernel = self.weight(f"{name}_kernel", shape, ("embed", None, None), init)
        bias = self.weight(f"{name}_bias", shape[1:], (None, None), initializers.zeros)
        y = einsum(equation, x_BTD, kernel)
        return y + bias.beside(y)


class Model(Layer):
    """Images (B, height, width, C) and tokens (A, T) to logits (B, A) of which goes with which."""

    SEQUENCE: ClassVar[tuple[str, ...]] = ()  # `context` splits rows that are made here

    config: Config
    dtype: Any = jnp.float32  # compute dtype
    train: bool = False  # dropout on

    def setup(self) -> None:
        c, clip = self.config, self.config.kind == "clip"
        init = initializers.normal(c.init_std)
        remat = (c.remat, c.remat_names, c.scan_unroll)
        self.image_embed = ImageTokens(
            c.image_dim,
            c.patch_size,
            c.grid,
            class_token=clip,
            bias=not clip,
            dtype=self.dtype,
            table_init=init,
        )
        if clip:
            self.image_first_norm = LayerNorm(c.norm_eps)
        self.image_blocks = block.stack(c.tower("image"), self.train, *remat)
        self.image_norm = LayerNorm(c.norm_eps)
        if clip:
            self.image_project = Dense(c.embed_dim, ("embed", None), bias=False, kernel_init=init)
        else:
            self.image_pool = AttentionPool(c.tower("image"))
        self.text_embed = embed.Embed(c.vocab_size, c.text_dim, self.dtype, init)
        self.text_positions = embed.PositionTable(c.context_length, c.text_dim, init)
        self.text_blocks = block.stack(c.tower("text"), self.train, *remat)
        self.text_norm = LayerNorm(c.norm_eps)
        self.text_project = Dense(c.embed_dim, ("embed", None), bias=not clip, kernel_init=init)
        constant = initializers.constant
        self.scale = self.weight("logit_scale", (1,), (None,), constant(c.logit_scale))
        if not clip:
            self.bias = self.weight("logit_bias", (1,), (None,), constant(c.logit_bias))

    def encode_image(self, images: jax.Array) -> jax.Array:
        """Images (B, height, width, C) of any size in the common space, (B, E), not normalised."""
        c = self.config
        x_BTD, row = self.image_embed(between_stages(images))
        if c.kind == "clip":
            x_BTD = self.image_first_norm(x_BTD)
        context = (row.source_BT, row.segments_BT)
        carry, _ = run(self.image_blocks, c.image_layers, (x_BTD, None), context, _seen)
        x_BTD = self.image_norm(carry[0])
        self.sow("intermediates", "image_states", x_BTD)
        if c.kind == "siglip":
            return self.image_pool(x_BTD, row)
        return self.image_project(pooled(x_BTD, row.first_BT))

    def encode_text(self, tokens_AT: jax.Array) -> jax.Array:
        """Texts in the common space, (A, E), not normalised.

        Padding after a text's end is not seen by clip; siglip reads a text at its last place, which
        padding may be, as it was in training.
        Raises ValueError for more tokens than `context_length`.
        """
        c = self.config
        A, length = tokens_AT.shape
        if length > c.context_length:
            raise ValueError(
                f"texts of {length} tokens are longer than model.context_length="
                f"{c.context_length}; nearest: {c.context_length}"
            )
        own_AT, segments_AT = shared_out(tokens_AT, A, fill=-1)
        place_1T = columns(own_AT.shape[1])[None]
        x_ATD = self.text_embed(jnp.maximum(between_stages(own_AT), 0))
        # Places of padding have no row in the table; which one they get is not seen.
        rows_1T = jnp.minimum(place_1T, length - 1)
        x_ATD = x_ATD + self.text_positions(rows_1T, self.dtype)
        x_ATD = vary(x_ATD, (*BATCH_AXES, *sequence_axes()))
        context = (place_1T, segments_AT)
        carry, _ = run(self.text_blocks, c.text_layers, (x_ATD, None), context, _seen)
        x_ATD = self.text_norm(carry[0])
        self.sow("intermediates", "text_states", x_ATD)
        read_AT = leave(place_1T) == self._end(tokens_AT)[:, None]
        return self.text_project(pooled(x_ATD, read_AT.astype(jnp.float32)))

    def _end(self, tokens_AT: jax.Array) -> jax.Array:
        """The place at which a text is read, (A,)."""
        c = self.config
        if c.kind == "siglip":
            return jnp.full(tokens_AT.shape[:1], tokens_AT.shape[1] - 1)
        marked_AT = tokens_AT if c.end_token < 0 else tokens_AT == c.end_token
        return jnp.argmax(marked_AT, axis=1)

    def features(
        self, images: jax.Array, tokens_AT: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Unit vectors of images (B, E) and texts (A, E), and the factor and the bias, (1, 1),
        that make logits of their products; float32."""
        image_BE, text_AE = unit(self.encode_image(images)), unit(self.encode_text(tokens_AT))
        scale = jnp.exp(self.scale.beside(image_BE))
        bias = jnp.zeros_like(scale)
        if self.config.kind == "siglip":
            bias = self.bias.beside(image_BE)
        return image_BE, text_AE, scale, bias

    def __call__(self, images: jax.Array, tokens_AT: jax.Array) -> jax.Array:
        """Logits (B, A), float32. Sows "image_states" and "text_states", normed, and "attention"
        and "residual" per layer."""
        image_BE, text_AE, scale, bias = self.features(images, tokens_AT)
        return image_BE @ text_AE.T * scale + bias


def _seen(context: tuple[Any, ...]) -> tuple[Seen]:
    return (Seen(*context),)


def unit(x: jax.Array) -> jax.Array:
    """x / |x| over the last dimension, float32 at least."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x / jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True))


def zero_shot(model: Model, variables: Any, images: jax.Array, tokens_CPT: jax.Array) -> jax.Array:
    """Logits (B, C) of classes that texts describe (Radford et al. 2021, section 3.1).

    tokens_CPT: P texts of each class, whose unit vectors are averaged.
    """
    C, P, T = tokens_CPT.shape
    found: Any = model.apply(variables, images, tokens_CPT.reshape(C * P, T), method="features")
    image_BE, text_AE, scale, bias = found
    class_CE = unit(text_AE.reshape(C, P, -1).mean(axis=1))
    return image_BE @ class_CE.T * scale + bias


def _clip(patch: int, image: tuple[int, int, int], text: tuple[int, int], side: int) -> Config:
    """image: width, layers, heads; text: width, heads."""
    (image_dim, image_layers, image_heads), (text_dim, text_heads) = image, text
    return Config(
        image_size=(side, side),
        patch_size=(patch, patch),
        image_dim=image_dim,
        image_layers=image_layers,
        image_heads=image_heads,
        text_dim=text_dim,
        text_heads=text_heads,
        embed_dim=text_dim,
    )


def _siglip(patch: int, width: int, layers: int, heads: int, mlp: int, side: int) -> Config:
    sizes: dict[str, Any] = {
        f"{tower}_{field}": value
        for tower in ("image", "text")
        for field, value in (
            *(("dim", width), ("layers", layers), ("heads", heads)),
            *(("mlp_dim", mlp), ("activation", "gelu_tanh")),
        )
    }
    return Config(
        kind="siglip",
        image_size=(side, side),
        patch_size=(patch, patch),
        vocab_size=32000,
        context_length=64,
        embed_dim=width,
        norm_eps=1e-6,
        logit_scale=math.log(10.0),
        **sizes,
    )


_BASE, _LARGE = (768, 12, 12), (1024, 24, 16)
PRESETS = {
    "clip-base-32": _clip(32, _BASE, (512, 8), 224),
    "clip-base-16": _clip(16, _BASE, (512, 8), 224),
    "clip-large-14": _clip(14, _LARGE, (768, 12), 224),
    "clip-large-14-336": _clip(14, _LARGE, (768, 12), 336),
    "siglip-base-16": _siglip(16, *_BASE, 0, 224),
    "siglip-large-16": _siglip(16, *_LARGE, 0, 256),
    "siglip-so400m-14": _siglip(14, 1152, 27, 16, 4304, 384),
}

OBJECTIVES = ("contrast",)  # those that train it


def tiny() -> Config:
    """A model that a CPU trains in a second; every size differs, so that no mix-up passes."""
    return Config(
        image_size=(6, 12),
        patch_size=(2, 3),
        in_channels=2,
        image_dim=32,
        image_layers=8,
        image_heads=8,
        image_mlp_dim=48,
        vocab_size=40,
        context_length=17,
        text_dim=24,
        text_layers=8,
        text_heads=8,
        text_mlp_dim=64,
        embed_dim=16,
        logit_scale=0.0,  # first features are alike: a factor would show their rounding
    )


def example(config: Config, batch: int) -> tuple[jax.Array, ...]:
    """Positional inputs of the model: images (batch, height, width, C), tokens (batch, T)."""
    shape = (batch, *config.image_size, config.in_channels)
    images = jnp.sin(jnp.arange(math.prod(shape), dtype=jnp.float32)).reshape(shape)
    tokens = 7 * jnp.arange(batch * config.context_length, dtype=jnp.int32)
    return images, tokens.reshape(batch, -1) % config.vocab_size
