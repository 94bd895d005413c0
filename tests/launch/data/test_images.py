"""Images: what is decoded and cut is the picture."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from launch.data import images


def gradient(height: int, width: int) -> np.ndarray:
    """Red grows to the right, green downwards: a pixel's colour tells its place."""
    rows, columns = np.mgrid[0:height, 0:width]
    picture = np.stack([255 * columns / (width - 1), 255 * rows / (height - 1), 0 * rows], -1)
    return picture.astype(np.uint8)


def jpeg(array: np.ndarray, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).convert(mode).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def test_png_goes_there_and_back() -> None:
    for array in (gradient(5, 7), gradient(5, 7)[..., 0]):
        picture = images.decode(images.encode_png(array), 3 if array.ndim == 3 else 1)
        back = images.to_array(picture)
        assert back.shape == (5, 7, 3 if array.ndim == 3 else 1)
        np.testing.assert_allclose(back * 255, array.reshape(back.shape), atol=1e-4)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_every_kind_of_picture_becomes_the_channels_asked_for(mode: str) -> None:
    encoded = jpeg(gradient(8, 8), mode)
    assert images.to_array(images.decode(encoded, 3)).shape == (8, 8, 3)
    assert images.to_array(images.decode(encoded, 1)).shape == (8, 8, 1)


def test_a_large_jpeg_is_decoded_small_but_large_enough() -> None:
    encoded = jpeg(gradient(400, 640))
    assert images.decode(encoded, 3).size == (640, 400)
    assert images.decode(encoded, 3, at_least=100).size == (160, 100)
    assert images.decode(encoded, 3, at_least=150).size == (320, 200)


def test_centre_crop() -> None:
    picture = Image.fromarray(gradient(40, 80))
    cut = images.to_array(images.centre_crop(picture, 20, 0.5))
    assert cut.shape == (20, 20, 3)
    # 20 of 40 rows and 20 of 80 columns about the middle, pixel by pixel
    np.testing.assert_allclose(cut, gradient(40, 80)[10:30, 30:50] / 255, atol=1e-6)


def test_random_resized_crop_stays_inside_and_varies() -> None:
    picture = Image.fromarray(gradient(60, 90))
    areas = []
    for seed in range(200):
        generator = np.random.default_rng(seed)
        cut = images.to_array(images.random_resized_crop(picture, 16, 0.25, generator))
        assert cut.shape == (16, 16, 3)
        width, height = np.ptp(cut[..., 0]), np.ptp(cut[..., 1])  # fractions of the picture
        areas.append(width * height)
        if width < 0.9 and height < 0.9:
            assert 0.7 < width * 90 / (height * 60) < 1.45
    assert 0.15 < min(areas) < 0.3
    assert max(areas) > 0.7


def test_a_picture_no_crop_fits_is_cut_in_the_middle() -> None:
    thin = Image.fromarray(gradient(4, 400))
    cut = images.random_resized_crop(thin, 4, 1.0, np.random.default_rng(0))
    np.testing.assert_allclose(images.to_array(cut), gradient(4, 400)[:, 198:202] / 255, atol=1e-6)


def test_enlarging_keeps_the_mean_and_the_range() -> None:
    image = np.random.default_rng(0).random((8, 8), np.float32)
    large = images.enlarged(image, 32)
    assert large.shape == (32, 32)
    assert large.dtype == np.float32
    assert image.min() <= large.min() <= large.max() <= image.max()
    assert large.mean() == pytest.approx(image.mean(), abs=0.02)
