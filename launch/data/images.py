"""Decode, crop and resize real images with Pillow. Arrays are (H, W, C) float32 in 0..1."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image

_MODES = {1: "L", 3: "RGB"}


def decode(encoded: bytes, channels: int, at_least: int = 0) -> Image.Image:
    """The picture in `encoded` (PNG, JPEG ...) as grey (1 channel) or RGB (3).

    Args:
      at_least: the shorter side that the caller needs, pixels; a JPEG that is over twice as large
        is decoded at a fraction of its size, which is several times faster. 0: the whole picture.
    """
    image = Image.open(io.BytesIO(encoded))
    if at_least:
        image.draft(_MODES[channels], (at_least, at_least))
    if image.mode == _MODES[channels]:
        image.load()
        return image  # converting would copy it
    return image.convert(_MODES[channels])


def encode_png(image: np.ndarray) -> bytes:
    """PNG bytes of an (H, W) or (H, W, 3) uint8 array."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def to_array(
    image: Image.Image, mean: np.ndarray | float = 0, std: np.ndarray | float = 1
) -> np.ndarray:
    """(H, W, C) float32: the pixels, from 0..1, minus `mean`, divided by `std`, per channel."""
    array = np.array(image, np.float32)
    if array.ndim == 2:
        array = array[..., None]
    array *= np.float32(1 / 255) / np.asarray(std, np.float32)
    array -= np.asarray(mean / std, np.float32)
    return array


def random_resized_crop(
    image: Image.Image, size: int, min_area: float, generator: np.random.Generator
) -> Image.Image:
    """A crop of random area and aspect, resized to size x size (Szegedy et al., 2015, section 6).

    The area is min_area..1 of the picture's, the aspect 3/4..4/3. Ten draws are tried; when none
    fits, the largest centre crop is taken.
    """
    width, height = image.size
    for _ in range(10):
        area = generator.uniform(min_area, 1.0) * width * height
        aspect = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left = int(generator.integers(0, width - w + 1))
            top = int(generator.integers(0, height - h + 1))
            box = (left, top, left + w, top + h)
            return image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return centre_crop(image, size, 1.0)


def centre_crop(image: Image.Image, size: int, fraction: float) -> Image.Image:
    """The centre square whose side is `fraction` of the shorter side, resized to size x size."""
    width, height = image.size
    side = fraction * min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box)


def enlarged(image: np.ndarray, size: int) -> np.ndarray:
    """A (H, W) float32 image, interpolated to (size, size)."""
    picture = Image.fromarray(image)  # one channel of 32-bit floats
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))
