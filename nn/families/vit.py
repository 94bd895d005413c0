"""Vision transformers: images as rows of patches, encoded as sentences are.

Dosovitskiy et al. 2021 (ViT); He et al. 2022 (MAE, the encoder); Oquab et al. 2024 (DINOv2); Darcet
et al. 2024 (registers); Simeoni et al. 2025 (DINOv3): configs of one model.

Legend: B batch, N patches, T tokens of a row, D residual width, K head width.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from nn import activations, initializers, names
from nn.layers import block, norm
from nn.layers.block import Seen
from nn.layers.dense import Dense
from nn.layers.dropout import Dropout
from nn.layers.patches import ImageTokens, Row, check_sizes, grid_of, pooled
from nn.layers.stack import remat_policy, run
from nn.parallel import Layer
from nn.parallel.pipeline import between_stages

PROJECTIONS = dict.fromkeys(("query", "key", "value", "out", "mlp"))
POSITIONS = dict.fromkeys(("learned", "sincos", "rotary"))
POOLS = dict.fromkeys(("class", "mean", "class_mean"))


@dataclasses.dataclass(frozen=True)
class Config:
    image_size: tuple[int, ...] = (224, 224)  # height and width of training, pixels
    patch_size: tuple[int, ...] = (16, 16)  # height and width, pixels
    in_channels: int = 3
    dim: int = 768  # residual width D
    num_layers: int = 12
    num_heads: int = 12
    head_dim: int = 0  # width of a head; 0: dim / num_heads
    mlp_dim: int = 0  # hidden units of the feed-forward block; 0: 4 * dim
    activation: str = "gelu"  # a gated one (swiglu) adds a third matrix
    norm_eps: float = 1e-6
    unbiased: tuple[str, ...] = ()  # of query, key, value, out, mlp: without biases
    num_registers: int = 0  # tokens without a position between the class token and the patches
    layer_scale: float = 0.0  # first factor of each branch (Touvron et al. 2021); 0: none
    position: str = "learned"  # learned | sincos | rotary, of patches only
    antialias: bool = False  # smooth the positions when there are fewer than in training
    rope_theta: float = 100.0  # base of the rotary frequencies
    rope_shift: float = 0.0  # in training places move by up to this, of half an image; 0: never
    rope_jitter: float = 1.0  # and each side is stretched by a factor of 1 / this to this
    rope_rescale: float = 1.0  # and both together by another
    mask_ratio: float = 0.0  # share of the patches that a shuffled row leaves out
    mask_token: bool = False  # a learned vector in the place of masked patches
    pool: str = "class"  # class | mean, of patches | class_mean, side by side
    pooler: bool = False  # a dense layer and tanh after it
    num_classes: int = 1000  # 0: the output is what was pooled
    dropout: float = 0.0  # probability: embeddings and branches
    attention_dropout: float = 0.0  # probability: attention weights
    attention_factor: float = 1.0  # of the scores besides; scale.rule sets it
    branch_factor: float = 1.0  # of what a branch adds to the residual; scale.rule sets it
    init_std: float = 0.02  # of weights
    remat: str = "none"  # none | block | dots | names | offload: see nn/layers/stack.py
    # what names keeps and offload sends to the host: these, or mlp
    remat_names: tuple[str, ...] = ("query", "key", "value", "attention")
    scan_unroll: int = 1  # layers per iteration of the loop over depth; 0: all of them

    def __post_init__(self) -> None:
        for field in ("in_channels", "dim", "num_layers", "num_heads"):
            if getattr(self, field) < 1:
                raise ValueError(f"model.{field}={getattr(self, field)}: must be at least 1")
        check_sizes(self.image_size, self.patch_size)
        if not self.head_dim and self.dim % self.num_heads:
            raise ValueError(
                f"model.num_heads={self.num_heads} does not divide model.dim={self.dim}; "
                f"nearest that does: {names.nearest_divisor(self.dim, self.num_heads)}"
            )
        if self.position == "rotary" and self.head_width % 4:
            raise ValueError(
                f"model.position='rotary' in two dimensions needs heads of a width that is a "
                f"multiple of 4, not {self.head_width}; nearest: {-(-self.head_width // 4) * 4}"
            )
        for field in ("dropout", "attention_dropout", "mask_ratio"):
            if not 0.0 <= getattr(self, field) < 1.0:
                raise ValueError(f"model.{field}={getattr(self, field)}: must be in [0, 1)")
        names.lookup("model.position", self.position, POSITIONS)
        names.lookup("model.pool", self.pool, POOLS)
        for name in self.unbiased:
            names.lookup("model.unbiased", name, PROJECTIONS)
        activations.get(self.activation)
        remat_policy(self.remat, self.remat_names)

    @property
    def head_width(self) -> int:
        return self.head_dim or self.dim // self.num_heads

    @property
    def mlp_width(self) -> int:
        return self.mlp_dim or 4 * self.dim

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along the height and the width."""
        return grid_of(self.image_size, self.patch_size)

    @property
    def block(self) -> block.Spec:
        return block.Spec(
            layers=self.num_layers,
            dim=self.dim,
            heads=self.num_heads,
            kv_heads=self.num_heads,
            head_dim=self.head_width,
            mlp_dim=self.mlp_width,
            activation=self.activation,
            norm_eps=self.norm_eps,
            causal=False,
            unbiased=self.unbiased,
            layer_scale=self.layer_scale,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            attention_factor=self.attention_factor,
            branch_factor=self.branch_factor,
            init_std=self.init_std,
            out_std=self.init_std,
        )

    def factors(self, base: Config) -> dict[str, float]:
        """What `nn.learning.parametrisation` sets, beside a smaller model."""
        return block.factors([self.block], [base.block])


class Model(Layer):
    """Images (B, height, width, C) to float32 logits (B, num_classes)."""

    SEQUENCE: ClassVar[tuple[str, ...]] = ()  # `context` splits rows of tokens, not images

    config: Config
    dtype: Any = jnp.float32  # compute dtype
    train: bool = False  # dropout on

    def setup(self) -> None:
        c = self.config
        init = initializers.normal(c.init_std)
        self.embed = ImageTokens(
            c.dim,
            c.patch_size,
            c.grid,
            registers=c.num_registers,
            mask_token=c.mask_token,
            position="none" if c.position == "rotary" else c.position,
            antialias=c.antialias,
            dtype=self.dtype,
            table_init=init,
        )
        self.dropout = Dropout(c.dropout, ("batch", "tokens", None), self.train)
        self.blocks = block.stack(c.block, self.train, c.remat, c.remat_names, c.scan_unroll)
        self.final_norm = norm.LayerNorm(c.norm_eps)
        if c.pooler:
            self.pooler = Dense(c.dim, ("embed", None), kernel_init=init)
        if c.num_classes:
            self.output = Dense(c.num_classes, ("embed", None), kernel_init=init)

    def hidden(
        self,
        images: jax.Array,
        shuffle_BN: jax.Array | None = None,
        masked_BN: jax.Array | None = None,
    ) -> tuple[jax.Array, Row]:
        """Final normed states, this shard's positions between blocks (B, T, D), and what they are.

        Where `pipe` splits the layers, those of stages but the last mean nothing.

        Args:
          images: of any size; what does not fill a patch is left out, positions are interpolated.
          shuffle_BN: an order of the patches of each image, of which the first (1 - mask_ratio) N
            are kept (He et al. 2022, section 3).
          masked_BN: 1 for patches in whose place the mask token stands.
        """
        c = self.config
        if images.ndim != 4 or images.shape[-1] != c.in_channels:
            raise ValueError(
                f"model.in_channels={c.in_channels}: inputs must be images (batch, height, width, "
                f"{c.in_channels}), got shape {images.shape}"
            )
        if masked_BN is not None and not c.mask_token:
            raise ValueError("masked patches need model.mask_token=True")
        kept_BK = None
        if shuffle_BN is not None:
            kept_BK = shuffle_BN[:, : int(shuffle_BN.shape[1] * (1 - c.mask_ratio))]
        x_BTD, row = self.embed(between_stages(images), kept_BK, masked_BN)
        grid = grid_of(images.shape[1:3], c.patch_size)
        context = (row.source_BT, row.segments_BT, self._rotary(grid, row))
        carry, _ = run(self.blocks, c.num_layers, (self.dropout(x_BTD), None), context, _seen)
        return self.final_norm(carry[0]), row

    def _rotary(self, grid: tuple[int, int], row: Row) -> tuple[Any, ...]:
        """cos and sin for each token, (B or 1, T, 1, K/2), if positions are rotary."""
        c = self.config
        if c.position != "rotary":
            return ()
        places_N2 = jnp.asarray(centres(grid))
        augmented = (c.rope_shift, c.rope_jitter, c.rope_rescale) != (0.0, 1.0, 1.0)
        if self.train and augmented:
            key = self.make_rng("dropout")
            places_N2 = moved(key, places_N2, c.rope_shift, c.rope_jitter, c.rope_rescale)
        rate = 2 * math.pi * c.rope_theta ** -np.arange(0, 1, 4 / c.head_width)
        angle = places_N2[:, :, None] * jnp.asarray(rate, jnp.float32)[None, None]
        # Tokens that are no patches stay as they are: they turn by 0.
        fill = ((row.prefix, 1), (0, 0))
        angle = jnp.pad(angle.reshape(angle.shape[0], -1), fill)
        turns = jnp.take(angle, row.source_BT, axis=0)[:, :, None]
        return ((jnp.cos(turns), jnp.sin(turns)),)

    def pool(self, x_BTD: jax.Array, row: Row) -> jax.Array:
        """What stands for a whole image, (B, D), or (B, 2 D) for class_mean; the same on all shards
        of a row."""
        c = self.config
        parts = {"class": lambda: row.first_BT, "mean": lambda: row.patch_BT / row.kept}
        y_BD = jnp.concatenate(
            [pooled(x_BTD, parts[name]()) for name in c.pool.split("_")], axis=-1
        )
        return activations.tanh(self.pooler(y_BD)) if c.pooler else y_BD

    def __call__(self, images: jax.Array, **inputs: Any) -> jax.Array:
        """Logits, or pooled states; inputs as in `hidden`. Sows "states" (B, T, D), those of
        `hidden`, and "attention" and "residual" per layer."""
        x_BTD, row = self.hidden(images, **inputs)
        self.sow("intermediates", "states", x_BTD)
        y_BD = self.pool(x_BTD, row)
        if self.config.num_classes:
            y_BD = self.output(y_BD)
        return y_BD.astype(jnp.promote_types(y_BD.dtype, jnp.float32))


def _seen(context: tuple[Any, ...]) -> tuple[Seen]:
    return (Seen(*context),)


def centres(grid: tuple[int, int]) -> np.ndarray:
    """Centres of the patches of an image whose sides go from -1 to 1, (N, 2), rows before columns,
    float32."""
    sides = [(np.arange(n) + 0.5) / n * 2 - 1 for n in grid]
    return np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1).reshape(-1, 2).astype(np.float32)


def moved(
    key: jax.Array, places_N2: jax.Array, shift: float, jitter: float, rescale: float
) -> jax.Array:
    """The places of a batch, shifted and stretched at random (Simeoni et al. 2025, section 3.1)."""
    by, *factors = (
        jax.random.uniform(part, (1, count), minval=-1, maxval=1)
        for part, count in zip(jax.random.split(key, 3), (2, 2, 1), strict=True)
    )
    places_N2 = places_N2 + shift * by
    for largest, power in zip((jitter, rescale), factors, strict=True):
        places_N2 = places_N2 * jnp.exp(math.log(largest) * power)
    return places_N2


def _vit(dim: int, layers: int, heads: int, patch: int, mlp: int = 0, **more: Any) -> Config:
    mlp = 0 if mlp == 4 * dim else mlp
    sizes: dict[str, Any] = {"dim": dim, "num_layers": layers, "num_heads": heads, "mlp_dim": mlp}
    return Config(patch_size=(patch, patch), **sizes, **{"norm_eps": 1e-12, **more})


def _mae(dim: int, layers: int, heads: int, patch: int) -> Config:
    return _vit(dim, layers, heads, patch, position="sincos", mask_ratio=0.75, num_classes=0)


def _dinov2(dim: int, layers: int, heads: int, registers: int, **more: Any) -> Config:
    """Only the models with registers smooth their positions."""
    return _vit(
        *(dim, layers, heads, 14),
        image_size=(518, 518),
        norm_eps=1e-6,
        layer_scale=1.0,
        num_registers=registers,
        antialias=registers > 0,
        mask_token=True,
        num_classes=0,
        **more,
    )


def _dinov3(dim: int, layers: int, heads: int, mlp: int, **more: Any) -> Config:
    fields: dict[str, Any] = {
        "norm_eps": 1e-5,
        "layer_scale": 1.0,
        "num_registers": 4,
        "mask_token": True,
        "num_classes": 0,
        "position": "rotary",
        "rope_rescale": 2.0,
        "unbiased": ("key",),
    }
    return _vit(dim, layers, heads, 16, mlp, **{**fields, **more})


_GIANT: dict[str, Any] = {"activation": "swiglu", "mlp": 4096}
PRESETS = {
    "vit-tiny-16": _vit(192, 12, 3, 16),
    "vit-small-16": _vit(384, 12, 6, 16),
    "vit-base-32": _vit(768, 12, 12, 32),
    "vit-base-16": _vit(768, 12, 12, 16),
    "vit-large-16": _vit(1024, 24, 16, 16),
    "vit-huge-14": _vit(1280, 32, 16, 14),
    "mae-base-16": _mae(768, 12, 12, 16),
    "mae-large-16": _mae(1024, 24, 16, 16),
    "mae-huge-14": _mae(1280, 32, 16, 14),
    "dinov2-small": _dinov2(384, 12, 6, 0),
    "dinov2-base": _dinov2(768, 12, 12, 0),
    "dinov2-large": _dinov2(1024, 24, 16, 0),
    "dinov2-giant": _dinov2(1536, 40, 24, 0, **_GIANT),
    "dinov2-small-registers": _dinov2(384, 12, 6, 4),
    "dinov2-base-registers": _dinov2(768, 12, 12, 4),
    "dinov2-large-registers": _dinov2(1024, 24, 16, 4),
    "dinov2-giant-registers": _dinov2(1536, 40, 24, 4, **_GIANT),
    "dinov3-small": _dinov3(384, 12, 6, 1536),
    "dinov3-small-plus": _dinov3(384, 12, 6, 1536, activation="swiglu"),
    "dinov3-base": _dinov3(768, 12, 12, 3072),
    "dinov3-large": _dinov3(1024, 24, 16, 4096),
    "dinov3-huge-plus": _dinov3(1280, 32, 20, 5120, activation="swiglu"),
    "dinov3-7b": _dinov3(
        *(4096, 40, 32, 8192), activation="swiglu", unbiased=("query", "key", "value")
    ),
}

OBJECTIVES = ("classify",)  # those that train it


def tiny() -> Config:
    """A model that a CPU trains in a second; every size differs, so that no mix-up passes."""
    return Config(
        image_size=(6, 12),
        patch_size=(2, 3),
        in_channels=2,
        dim=32,
        num_layers=8,
        num_heads=8,
        mlp_dim=48,
        num_registers=2,
        layer_scale=0.5,
        pool="class_mean",
        num_classes=10,
    )


def example(config: Config, batch: int) -> tuple[jax.Array, ...]:
    """Positional inputs of the model: images (batch, height, width, channels)."""
    shape = (batch, *config.image_size, config.in_channels)
    return (jnp.sin(jnp.arange(math.prod(shape), dtype=jnp.float32)).reshape(shape),)
