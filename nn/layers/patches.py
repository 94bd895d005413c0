"""Images as rows of tokens: patches, tokens of their own before them, positions in two dimensions.

Dosovitskiy et al. 2021 (ViT), section 3.1. A row is a class token, registers (Darcet et al. 2024)
and the patches, from left to right and then down. `context` and sequence parallelism split rows; a
row that they do not divide is padded with tokens of segment 0, which no other token sees. (Dropout
numbers the tokens of padded rows, so its noise is then not that of one device.)

Legend: B batch, N patches, K patches that are kept, P numbers of a patch, T tokens of a row, D
residual width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from nn import initializers, names
from nn.parallel import BATCH_AXES, Layer, axis_index, axis_size, einsum, leave, psum, vary
from nn.parallel.collectives import varying
from nn.parallel.mesh import current_rules
from nn.parallel.pipeline import PIPE, stages
from nn.parallel.sequence import columns
from nn.parallel.tensor import sequence_axes, sequence_is_split

POSITIONS = dict.fromkeys(("learned", "sincos", "none"))


class Row(struct.PyTreeNode):
    """What the tokens of rows are.

    source_BT: of all positions of a block, which token of the row of all patches each is: first
      the `prefix` tokens, then the `patches`, then padding. (B or 1, T).
    segments_BT: 1, and 0 for padding; None where there is none.
    kept: patches of a row.
    """

    source_BT: jax.Array
    segments_BT: jax.Array | None
    prefix: int = struct.field(pytree_node=False)
    patches: int = struct.field(pytree_node=False)
    kept: int = struct.field(pytree_node=False)

    @property
    def here_BT(self) -> jax.Array:
        """Which token each position between blocks is."""
        return leave(self.source_BT)

    @property
    def first_BT(self) -> jax.Array:
        """1.0 for the first token of a row, between blocks."""
        return (self.here_BT == 0).astype(jnp.float32)

    @property
    def patch_BT(self) -> jax.Array:
        """1.0 for patches, between blocks."""
        here_BT = self.here_BT
        found = (here_BT >= self.prefix) & (here_BT < self.prefix + self.patches)
        return found.astype(jnp.float32)


class ImageTokens(Layer):
    """From images to rows of tokens.

    patch: height and width, pixels.
    grid: patches along the height and the width for which there are positions; those of images of
      another size are interpolated from these, smoothed if `antialias` (see `bicubic`).
    position: learned | sincos | none. The class token has one too, registers have none.
    mask_token: a learned vector that takes the place of patches that are masked.
    dtype: of the tokens: the compute dtype of a model starts here.
    """

    features: int
    patch: tuple[int, ...]
    grid: tuple[int, ...]
    class_token: bool = True
    registers: int = 0
    mask_token: bool = False
    position: str = "learned"
    bias: bool = True
    antialias: bool = False
    dtype: Any = jnp.float32
    table_init: initializers.Initializer = initializers.normal(0.02)

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        kept_BK: jax.Array | None = None,
        masked_BN: jax.Array | None = None,
    ) -> tuple[jax.Array, Row]:
        """Tokens between blocks (B, T, D) and what they are, of images (B, height, width, C).

        kept_BK: the patches that are in the row, in their order there; all by default.
        masked_BN: 1 for patches in whose place `mask_token` stands.
        Raises ValueError for images that are smaller than a patch.
        """
        names.lookup("position", self.position, POSITIONS)
        patches_BNP, grid = cut(images.astype(self.dtype), self.patch)
        prefix = self.class_token + self.registers
        row = _row(images.shape[0], prefix, patches_BNP.shape[1], kept_BK)
        x_BTD = self._project(patches_BNP, row, images.shape[-1])
        if masked_BN is not None:
            instead = self._own("mask_token", ()).beside(x_BTD)
            masked_BT = _tokens(masked_BN[..., None] > 0, row)
            x_BTD = jnp.where(masked_BT, instead, x_BTD)
        elif self.mask_token:
            self._own("mask_token", ())
        table_SD = self._table(grid, x_BTD.astype(jnp.float32))
        x_BTD = x_BTD + jnp.take(table_SD, row.here_BT, axis=0).astype(self.dtype)
        return vary(x_BTD, (*BATCH_AXES, *sequence_axes())), row

    def _own(self, name: str, count: tuple[int, ...]) -> Any:
        shape = (*count, self.features)
        return self.weight(name, shape, (None,) * len(shape), self.table_init)

    def _project(self, patches_BNP: jax.Array, row: Row, channels: int) -> jax.Array:
        """The vector of each patch, and 0 for other tokens."""
        shape = (*self.patch, channels, self.features)
        kernel = self.weight("kernel", shape, (None, None, None, "embed"), self.table_init)
        x_BTP = _tokens(patches_BNP, row)
        x = x_BTP.reshape(*x_BTP.shape[:2], *shape[:-1])
        x_BTD = einsum("btijc,ijcd->btd", x, kernel)
        if self.bias:
            bias = self.weight("bias", (self.features,), (None,), initializers.zeros)
            x_BTD = x_BTD + bias.beside(x_BTD) * row.patch_BT[..., None].astype(x_BTD.dtype)
        return x_BTD

    def _table(self, grid: tuple[int, int], like: jax.Array) -> jax.Array:
        """What is added to each token of a row, the patches' positions among it; 0 for padding."""
        positions_SD = self._positions(grid, like)
        rows = []
        if self.class_token:
            token = self._own("class_token", ()).beside(like).reshape(1, -1)
            rows.append(token if positions_SD is None else token + positions_SD[:1])
        if self.registers:
            rows.append(self._own("registers", (self.registers,)).beside(like)[0])
        patches = math.prod(grid)
        if positions_SD is None:
            positions_SD = jnp.zeros((patches, self.features), like.dtype)
        rows += [positions_SD[-patches:], jnp.zeros((1, self.features), like.dtype)]
        return jnp.concatenate(rows)

    def _positions(self, grid: tuple[int, int], like: jax.Array) -> jax.Array | None:
        """Of the class token, if there is one, and the patches of images of this `grid`."""
        if self.position == "none":
            return None
        first = int(self.class_token)
        if self.position == "sincos":
            table_SD = jnp.asarray(sincos(self.grid, self.features, self.class_token))
        else:
            shape = (first + math.prod(self.grid), self.features)
            table_SD = self.weight("positions", shape, (None, "embed"), self.table_init).whole(like)
        if grid == tuple(self.grid):
            return table_SD
        old = table_SD[first:].reshape(*self.grid, self.features)
        down, across = (bicubic(a, b, self.antialias) for a, b in zip(self.grid, grid, strict=True))
        new = jnp.einsum("ai,bj,ijd->abd", down, across, old).reshape(-1, self.features)
        return jnp.concatenate([table_SD[:first], new])


def check_sizes(image_size: Sequence[int], patch_size: Sequence[int]) -> None:
    """ValueError for fields of a config that are not height and width, or hold no patch."""
    for field, sizes in (("image_size", image_size), ("patch_size", patch_size)):
        if len(sizes) != 2 or min(sizes) < 1:
            raise ValueError(f"model.{field}={sizes}: must be height and width, pixels")
    if 0 in grid_of(image_size, patch_size):
        least = tuple(map(max, image_size, patch_size))
        raise ValueError(
            f"model.image_size={image_size} is smaller than model.patch_size={patch_size}; "
            f"nearest: {least}"
        )


def grid_of(image_size: Sequence[int], patch_size: Sequence[int]) -> tuple[int, int]:
    """How many patches lie along the height and the width; what does not fill one is left out."""
    return image_size[0] // patch_size[0], image_size[1] // patch_size[1]


def cut(images: jax.Array, patch: tuple[int, ...]) -> tuple[jax.Array, tuple[int, int]]:
    """Patches (B, N, P) of images (B, height, width, C), and how many lie along each side.

    Raises ValueError for images that are smaller than a patch.
    """
    B, height, width, C = images.shape
    down, across = grid_of((height, width), patch)
    if not down or not across:
        raise ValueError(
            f"images of {height} x {width} pixels are smaller than a patch; nearest: "
            f"{max(height, patch[0])} x {max(width, patch[1])}"
        )
    x = images[:, : down * patch[0], : across * patch[1]]
    x = x.reshape(B, down, patch[0], across, patch[1], C).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(B, down * across, -1), (down, across)


def padded(length: int) -> int:
    """The least length of a row, from `length`, that the mesh divides."""
    context, tensor = axis_size("context"), axis_size("tensor") if sequence_is_split() else 1
    halves = 2 if context > 1 and current_rules().layout == "zigzag" else 1
    multiple = context * math.lcm(halves, tensor)
    return -(-length // multiple) * multiple


def _row(batch: int, prefix: int, patches: int, kept_BK: jax.Array | None) -> Row:
    """The tokens that this shard of `context` holds."""
    kept = patches if kept_BK is None else kept_BK.shape[1]
    whole_BT = jnp.arange(prefix + kept, dtype=jnp.int32)[None]
    if kept_BK is not None:
        first_BT = jnp.broadcast_to(whole_BT[:, :prefix], (batch, prefix))
        whole_BT = jnp.concatenate([first_BT, prefix + kept_BK.astype(jnp.int32)], axis=1)
    return Row(*shared_out(whole_BT, batch, prefix + patches), prefix, patches, kept)


def shared_out(whole_BT: jax.Array, batch: int, fill: int) -> tuple[jax.Array, jax.Array | None]:
    """Of whole rows, what this shard of `context` holds, and its segments; see `Row`.

    whole_BT: (B or 1, T), the same on all shards of `context`. batch: B. fill: of what is padding,
      and of nothing else.
    """
    length, context = whole_BT.shape[1], axis_size("context")
    missing = padded(length) - length
    own_BT = jnp.pad(whole_BT, ((0, 0), (0, missing)), constant_values=fill)
    if context > 1:
        own_T = columns(own_BT.shape[1] // context)
        own_BT = jnp.take(vary(own_BT, varying(own_T)), own_T, axis=1)
    if not missing:
        return own_BT, None
    real_BT = (own_BT != fill).astype(jnp.int32)
    segments_BT = jnp.broadcast_to(real_BT, (batch, real_BT.shape[1]))
    return own_BT, vary(segments_BT, (*BATCH_AXES, "context"))


def _tokens(of_patches: jax.Array, row: Row) -> jax.Array:
    """Something of each patch, (B, N, P), for the tokens between blocks; 0 for other tokens."""
    here_BT = row.here_BT
    x = jnp.pad(of_patches, ((0, 0), (row.prefix, 1), (0, 0)))
    x = vary(x, varying(here_BT))
    if here_BT.shape[0] == 1:
        return jnp.take(x, here_BT[0], axis=1)
    return jnp.take_along_axis(x, vary(here_BT, varying(x))[..., None], axis=1)


def pooled(x_BTD: jax.Array, weight_BT: jax.Array) -> jax.Array:
    """Weighted sum over the tokens of a row, (B, D), the same on all shards of it and all stages.

    x_BTD: tokens between blocks after the last layer, or what follows from each of them.
    """
    y_BD = jnp.sum(x_BTD.astype(jnp.float32) * weight_BT[..., None], axis=1)
    if stages() > 1:  # only the last one has them
        y_BD = jnp.where(axis_index(PIPE) == stages() - 1, y_BD, jnp.zeros_like(y_BD))
    return psum(y_BD, (PIPE, *sequence_axes())).astype(x_BTD.dtype)


def sincos(grid: tuple[int, ...], width: int, first: bool) -> np.ndarray:
    """Fixed positions (patches, D), float32, in two dimensions (He et al. 2022, appendix A.1).

    Sines and cosines of the column in the first half of the width, of the row in the second: the
    order of the published weights. first: one of zeros before them, for a class token.
    Raises ValueError for a width that is no multiple of 4.
    """
    if width % 4:
        raise ValueError(
            f"positions 'sincos' need a width that is a multiple of 4, not {width}; "
            f"nearest: {max(round(width / 4), 1) * 4}"
        )
    rate = 10000.0 ** (-np.arange(width // 4) / (width // 4))
    down, across = np.meshgrid(*map(np.arange, grid), indexing="ij")
    angles = [place.reshape(-1, 1) * rate for place in (across, down)]
    table = np.concatenate([f(angle) for angle in angles for f in (np.sin, np.cos)], axis=1)
    return np.pad(table, ((int(first), 0), (0, 0))).astype(np.float32)


def bicubic(size: int, new: int, antialias: bool = False) -> np.ndarray:
    """The matrix (new, size), float32, that resamples `size` values at `new` places (Keys 1981).

    PyTorch's: places are centres of cells. Without `antialias` the kernel's parameter is -0.75 and
    values beyond the ends are those at the ends; with it, it is -0.5, the kernel is as much wider
    as cells are larger, and weights beyond the ends are left out.
    """
    step = size / new
    a, wide = (-0.5, max(step, 1.0)) if antialias else (-0.75, 1.0)
    places = (np.arange(new) + 0.5) * step - 0.5
    cells = np.arange(-math.ceil(2 * wide) - 1, size + math.ceil(2 * wide) + 1)
    t = np.abs(places[:, None] - cells[None]) / wide
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = a * (((t - 5) * t + 8) * t - 4)
    weights = np.where(t <= 1, near, np.where(t < 2, far, 0.0))
    inside = (cells >= 0) & (cells < size)
    if antialias:
        found = weights[:, inside] / weights[:, inside].sum(axis=1, keepdims=True)
    else:
        found = weights @ (np.clip(cells, 0, size - 1)[:, None] == np.arange(size))
    return found.astype(np.float32)
