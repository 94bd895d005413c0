"""What is the vision transformer's own: tokens that are no patches, positions, parts of images."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn.families import vit
from nn.layers import patches
from nn.parallel import Rules, unbox
from tests import parallel_cases as cases

TINY = dataclasses.replace(vit.tiny(), num_layers=2)
DINOV3 = dataclasses.replace(
    TINY, position="rotary", head_dim=8, mask_token=True, rope_rescale=2.0, rope_shift=0.5
)


def made(config: vit.Config, size: int = 3) -> tuple[vit.Model, Any, jax.Array]:
    """A model, parameters that are all different from 0 and 1, and images."""
    model, (images,) = vit.Model(config), vit.example(config, size)
    params = unbox(jax.jit(model.init)(jax.random.key(0), images))["params"]
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda x: x + rng.normal(0, 0.1, x.shape), params), images


def states(model: vit.Model, params: Any, *inputs: Any, **options: Any) -> np.ndarray:
    apply = jax.jit(functools.partial(model.apply, method="hidden"))
    return np.asarray(apply({"params": params}, *inputs, **options)[0])


def test_without_registers_it_is_the_plain_model() -> None:
    """DINOv2's two formats then differ in how they smooth positions, which is not seen here."""
    plain = dataclasses.replace(TINY, num_registers=0)
    model, params, images = made(plain)
    same = vit.Model(dataclasses.replace(plain, antialias=True))
    np.testing.assert_array_equal(states(same, params, images), states(model, params, images))
    _, more, _ = made(TINY)
    assert more["embed"].keys() - params["embed"].keys() == {"registers"}
    found = states(vit.Model(TINY), more, images)
    more["embed"].pop("registers")
    assert jax.tree.map(jnp.shape, more) == jax.tree.map(jnp.shape, params)
    assert found.shape == (3, 1 + 2 + 12, 32)
    assert np.abs(found[:, [0, *range(3, 15)]] - states(model, more, images)).max() > 1e-3


def test_patches_lie_in_the_order_of_reading() -> None:
    image = jnp.arange(2 * 4 * 6 * 2, dtype=jnp.float32).reshape(2, 4, 6, 2)
    found, grid = patches.cut(image, (2, 3))
    assert grid == (2, 2)
    for n, (i, j) in enumerate([(0, 0), (0, 3), (2, 0), (2, 3)]):
        np.testing.assert_array_equal(
            found[:, n], image[:, i : i + 2, j : j + 3].reshape(2, -1), err_msg=str(n)
        )


def test_images_of_another_size_get_interpolated_positions() -> None:
    model, params, images = made(TINY)
    large = jnp.concatenate([images, images], axis=1)
    assert states(model, params, large).shape == (3, 1 + 2 + 24, TINY.dim)
    flat = {**params, "embed": {**params["embed"], "positions": jnp.ones((13, TINY.dim))}}
    other = vit.Model(dataclasses.replace(TINY, image_size=(12, 12)))
    wide = {**flat, "embed": {**flat["embed"], "positions": jnp.ones((25, TINY.dim))}}
    # Positions that are all the same stay so, at the ends too.
    np.testing.assert_allclose(
        states(model, flat, large), states(other, wide, large), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("antialias", [False, True])
def test_bicubic_weights_are_whole(antialias: bool) -> None:
    for size, new in ((4, 9), (9, 4), (1, 5), (5, 1)):
        matrix = patches.bicubic(size, new, antialias)
        np.testing.assert_allclose(matrix.sum(axis=1), 1.0, rtol=1e-6)
        np.testing.assert_allclose(matrix[::-1, ::-1], matrix, atol=1e-7)
    np.testing.assert_array_equal(patches.bicubic(7, 7, antialias), np.eye(7))


def test_bicubic_keeps_lines_straight() -> None:
    inside = patches.bicubic(20, 40, antialias=True)[8:-8] @ np.arange(20)
    np.testing.assert_allclose(np.diff(inside), 0.5, atol=1e-5)


def test_shuffled_patches_are_those_that_are_kept() -> None:
    config = dataclasses.replace(TINY, mask_ratio=0.6, pool="mean")
    model, params, images = made(config)
    shuffle = jnp.asarray(np.random.default_rng(0).permuted(np.tile(np.arange(12), (3, 1)), axis=1))
    kept = states(model, params, images, shuffle_BN=shuffle)
    assert kept.shape[1] == 1 + 2 + 4
    # Other pixels of patches that are left out change nothing; of those that are kept, they do.
    for place, changes in ((4, False), (3, True)):
        row, column = divmod(int(shuffle[1, place]), 4)
        changed = images.at[1, 2 * row, 3 * column, 0].add(1.0)
        again = states(model, params, changed, shuffle_BN=shuffle)
        assert bool(np.abs(again[1] - kept[1]).max() > 1e-6) == changes
    # All of them in their order are the whole image.
    whole = dataclasses.replace(config, mask_ratio=0.0)
    order = jnp.tile(jnp.arange(12), (3, 1))
    np.testing.assert_allclose(
        vit.Model(whole).apply({"params": params}, images, shuffle_BN=order),
        vit.Model(whole).apply({"params": params}, images),
        rtol=1e-5,
        atol=1e-6,
    )


def test_masked_patches_do_not_show() -> None:
    model, params, images = made(dataclasses.replace(TINY, mask_token=True))
    masked = jnp.zeros((3, 12), jnp.int32).at[:, 5].set(1)
    before = states(model, params, images, masked_BN=masked)
    changed = images.at[:, 2, 3].add(1.0)
    np.testing.assert_array_equal(before, states(model, params, changed, masked_BN=masked))
    assert np.abs(before - states(model, params, images)).max() > 1e-3


def test_rotary_positions_tell_patches_apart() -> None:
    """Nothing else does: without them the class token would see a set."""
    model, params, images = made(DINOV3)
    halves = jnp.split(images, [6], axis=2)
    swapped = jnp.concatenate(halves[::-1], axis=2)
    difference = states(model, params, swapped) - states(model, params, images)
    assert np.abs(difference[:, 0]).max() > 1e-3


def test_places_move_in_training_only_and_with_the_key() -> None:
    model, params, images = made(DINOV3)
    model = model.clone(train=True)
    plain = vit.Model(DINOV3).apply({"params": params}, images)
    one, again, other = (
        model.apply({"params": params}, images, rngs={"dropout": jax.random.key(seed)})
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, again)
    assert float(jnp.abs(one - other).max()) > 0 and float(jnp.abs(one - plain).max()) > 0
    still = dataclasses.replace(DINOV3, rope_rescale=1.0, rope_shift=0.0)
    same = vit.Model(still, train=True).apply({"params": params}, images)
    np.testing.assert_allclose(same, plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("mesh", "rules"),
    [
        ({"pipe": 2, "context": 2, "tensor": 2}, {"microbatches": 2}),
        ({"fsdp": 2, "context": 4}, {"attention": "ulysses"}),
        ({"context": 8}, {"attention": "gather"}),
    ],
    ids=str,
)
@pytest.mark.slow
def test_rotary_positions_on_meshes(mesh: dict[str, int], rules: dict[str, Any]) -> None:
    config = dataclasses.replace(DINOV3, mask_token=False)
    want = cases.measure("vit", config, {})
    got = cases.measure("vit", config, mesh, Rules(sequence_parallel=True, **rules))
    assert got.loss == pytest.approx(want.loss, rel=1e-5)
    error, where = cases.worst(got.gradients, want.gradients)
    assert error <= 1e-5, where


def test_what_happens_inside_can_be_seen() -> None:
    model, params, images = made(TINY)
    _, sown = model.apply({"params": params}, images, mutable=["intermediates"])
    found = sown["intermediates"]
    assert found["states"][0].shape == (3, 15, 32)
    assert found["blocks"]["residual"][0].shape == (2, 3, 15, 32)
    weights = found["blocks"]["attention"]["attention"][0]
    assert weights.shape == (2, 3, 8, 15, 15)
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": (7, 3)}, r"image_size=\(6, 12\) is smaller .* nearest: \(7, 12\)"),
        ({"num_heads": 5}, "num_heads=5 does not divide model.dim=32; nearest that does: 4"),
        ({"position": "rotary", "head_dim": 6}, "multiple of 4, not 6; nearest: 8"),
        ({"pool": "max"}, "unknown model.pool 'max'"),
        ({"mask_ratio": 1.0}, "mask_ratio=1.0"),
        ({"unbiased": ("keys",)}, "unknown model.unbiased 'keys'"),
        ({"image_size": (8,)}, "image_size="),
    ],
    ids=str,
)
def test_wrong_configs_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)


def test_what_does_not_fill_a_patch_is_left_out() -> None:
    model, params, images = made(TINY)
    wider = jnp.pad(images, ((0, 0), (0, 1), (0, 2), (0, 0)), constant_values=9.0)
    np.testing.assert_array_equal(states(model, params, wider), states(model, params, images))


def test_wrong_images_are_refused() -> None:
    model, params, images = made(TINY)
    for wrong, message in (
        (images[..., :1], "model.in_channels=2: inputs must be images"),
        (images[:, :, :2], "images of 6 x 2 pixels are smaller than a patch; nearest: 6 x 3"),
    ):
        with pytest.raises(ValueError, match=message):
            model.apply({"params": params}, wrong)
    with pytest.raises(ValueError, match="mask_token=True"):
        model.apply({"params": params}, images, masked_BN=jnp.zeros((3, 12)))
