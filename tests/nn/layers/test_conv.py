"""Convolution and pooling by hand, padding, the transpose, and channels split over a mesh.

The numbers of PyTorch are in tests/parity/convolutions.py.
"""

from __future__ import annotations

import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from nn import parallel
from nn.layers.conv import Conv, ConvTranspose, avg_pool, global_avg_pool, max_pool, pad_amounts
from nn.parallel import convolution

Pair = tuple[int, int]


def by_hand(
    x: np.ndarray, kernel: np.ndarray, strides: Pair, pads: tuple[Pair, Pair], dilation: Pair
) -> np.ndarray:
    """Cross-correlation of (B, H, W, I) with (K, K, I, O), an output at a time."""
    x = np.pad(x, ((0, 0), *pads, (0, 0)))
    extent = [(k - 1) * d + 1 for k, d in zip(kernel.shape, dilation, strict=False)]
    outputs = [(x.shape[1 + i] - extent[i]) // strides[i] + 1 for i in (0, 1)]
    y = np.zeros((x.shape[0], *outputs, kernel.shape[-1]))
    for i, j in np.ndindex(*outputs):
        top, left = i * strides[0], j * strides[1]
        window = x[:, top : top + extent[0] : dilation[0], left : left + extent[1] : dilation[1]]
        y[:, i, j] = np.einsum("bhwi,hwio->bo", window, kernel)
    return y


# sizes, kernel, strides, padding, dilation; by taps where there are fewer outputs than taps
CASES: dict[str, tuple[Pair, Pair, Pair, tuple[Pair, Pair], Pair]] = {
    "large": ((7, 9), (3, 2), (2, 1), ((1, 1), (0, 1)), (1, 2)),
    "taps, image of the size of the kernel": ((3, 2), (3, 3), (1, 2), ((1, 1), (1, 1)), (1, 1)),
    "taps, one pixel": ((1, 1), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    "taps, strided and lopsided": ((4, 5), (4, 3), (3, 2), ((2, 0), (1, 3)), (1, 1)),
    "taps, dilated": ((3, 4), (3, 2), (2, 3), ((3, 1), (0, 2)), (2, 3)),
    "taps, outputs of padding alone": ((1, 2), (2, 3), (2, 2), ((3, 1), (2, 2)), (1, 1)),
    "pointwise": ((5, 6), (1, 1), (2, 3), ((0, 0), (1, 0)), (1, 1)),
    "nothing but padding": ((1, 1), (1, 1), (3, 3), ((1, 1), (1, 1)), (1, 1)),
}


@pytest.mark.parametrize("name", CASES)
def test_convolution_equals_its_formula(name: str) -> None:
    sizes, window, strides, pads, dilation = CASES[name]
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, *sizes, 3)), rng.normal(size=(*window, 3, 4))
    layer = Conv(4, window, strides, pads, dilation, bias=False)
    with jax.enable_x64(True):
        tapped = convolution._by_taps(jnp.asarray(x), jnp.asarray(kernel), strides, pads, dilation)
        assert (tapped is not None) == name.startswith(("taps", "pointwise"))
        y, pull = jax.vjp(lambda x, k: layer.apply({"params": {"kernel": k}}, x), x, kernel)
        ct = rng.normal(size=y.shape)
        dx, dkernel = (np.asarray(g) for g in pull(jnp.asarray(ct)))
    np.testing.assert_allclose(y, by_hand(x, kernel, strides, pads, dilation), atol=1e-12)
    # The function is bilinear: both gradients pair with a direction as the output does.
    for direction, gradient, change in (
        (rng.normal(size=x.shape), dx, lambda d: by_hand(d, kernel, strides, pads, dilation)),
        (rng.normal(size=kernel.shape), dkernel, lambda d: by_hand(x, d, strides, pads, dilation)),
    ):
        assert abs(np.sum(direction * gradient) - np.sum(ct * change(direction))) < 1e-10


def test_taps_accumulate_half_precision_in_float32() -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(1, 2, 2, 64)), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 64, 32)), jnp.bfloat16)
    pads = ((1, 1), (1, 1))
    y = convolution._by_taps(x, kernel, (1, 1), pads, (1, 1))
    exact = by_hand(np.asarray(x, float), np.asarray(kernel, float), (1, 1), pads, (1, 1))
    assert y is not None
    np.testing.assert_array_equal(y, jnp.asarray(exact, jnp.float32).astype(jnp.bfloat16))


@pytest.mark.parametrize("size, window, stride", itertools.product((5, 8), (2, 3, 5), (1, 2, 3)))
def test_same_and_valid_sizes(size: int, window: int, stride: int) -> None:
    ((before, after),) = pad_amounts("SAME", [size], [window], [stride], [1])
    assert (size + before + after - window) // stride + 1 == -(-size // stride)
    assert after - before in (0, 1)
    assert pad_amounts("VALID", [size], [window], [stride], [1]) == ((0, 0),)


def test_same_padding_of_an_even_image_is_after() -> None:
    """As in TensorFlow; symmetric padding, PyTorch's, reads one pixel further left."""
    x = jnp.arange(8.0).reshape(1, 8, 1)
    kernel = {"params": {"kernel": jnp.ones((3, 1, 1))}}
    same = Conv(1, (3,), 2, "SAME", bias=False).apply(kernel, x)
    symmetric = Conv(1, (3,), 2, 1, bias=False).apply(kernel, x)
    np.testing.assert_array_equal(np.ravel(same), [3, 9, 15, 13])
    np.testing.assert_array_equal(np.ravel(symmetric), [1, 6, 12, 18])


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("window, stride, padding", [(3, 2, 1), (2, 3, "SAME"), (4, 2, "VALID")])
def test_transpose_is_the_gradient_of_the_convolution(
    window: int, stride: int, padding: Any, groups: int
) -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=(2, 4, 6)).astype(np.float32)
    kernel = rng.normal(size=(window, 6 // groups, 4)).astype(np.float32)
    layer = ConvTranspose(4, (window,), stride, padding, groups=groups, bias=False)
    x = layer.apply({"params": {"kernel": kernel}}, y)
    if padding == "SAME":
        assert x.shape == (2, 4 * stride, 4)
    # Its kernel (K, I / g, O) as that of the convolution from O to I channels, group by group.
    parts = [part.swapaxes(1, 2) for part in np.split(kernel, groups, axis=-1)]
    forward = Conv(6, (window,), stride, padding, groups=groups, bias=False)
    back = {"params": {"kernel": np.concatenate(parts, axis=-1)}}
    _, pull = jax.vjp(lambda x: forward.apply(back, x), x)
    np.testing.assert_allclose(pull(jnp.asarray(y))[0], x, atol=1e-5)


def test_max_pool_and_its_gradient_are_those_of_reduce_window() -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(0, 4, (2, 7, 6, 3)).astype(np.float32))  # many ties
    ct = jnp.asarray(rng.normal(size=(2, 4, 3, 3)).astype(np.float32))
    pads = ((0, 0), (1, 1), (1, 1), (0, 0))
    y, pull = jax.vjp(lambda x: max_pool(x, 3, 2, padding=1), x)
    expected, reference = jax.vjp(
        lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), pads), x
    )
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_allclose(pull(ct)[0], reference(ct)[0], atol=1e-6)


def test_pools_by_hand() -> None:
    x = jnp.asarray([[3.0, 1.0, -5.0, jnp.nan, 2.0]])[..., None]
    np.testing.assert_array_equal(np.ravel(max_pool(x, 2, 1)), [3, 1, np.nan, np.nan])
    lowest = max_pool(-jnp.ones((1, 3, 1)), 3, 1, padding=1)
    np.testing.assert_array_equal(np.ravel(lowest), [-1, -1, -1])  # padding never wins
    x = jnp.asarray([[6.0, 3.0, 9.0]])[..., None]
    counted = avg_pool(x, 3, 1, padding=1)
    np.testing.assert_array_equal(np.ravel(counted), [3, 6, 4])
    np.testing.assert_array_equal(
        np.ravel(avg_pool(x, 3, 1, 1, count_include_pad=False)), [4.5, 6, 6]
    )
    np.testing.assert_array_equal(np.ravel(global_avg_pool(x)), [6])
    tall = jnp.arange(16.0).reshape(1, 2, 4, 2)
    np.testing.assert_array_equal(avg_pool(tall, (2, 1))[0, 0, :, 0], [4, 6, 8, 10])


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (
            Conv(4, (3, 3)),
            (1, 8, 2),
            r"kernel \(3, 3\) needs an input \(batch, 2 spatial sizes, ch",
        ),
        (Conv(4, (3,) * 4), (1, 8, 8, 8, 8, 2), "of 1 to 3 spatial sizes"),
        (Conv(6, (3,), groups=4), (1, 8, 8), "groups=4 does not divide .* 8 -> 6; nearest .*: 2"),
        (Conv(4, (3, 3), strides=(1, 2, 3)), (1, 8, 8, 2), r"strides=\(1, 2, 3\) for 2 spatial"),
        (Conv(4, (3, 3), padding="SAM"), (1, 8, 8, 2), "unknown padding 'SAM'.*nearest: 'SAME'"),
        (Conv(4, (3, 3), padding=(1,)), (1, 8, 8, 2), r"padding=\(1,\) for 2 spatial dimensions"),
    ],
)
def test_wrong_shapes_and_options_are_explained(
    layer: Conv, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros(shape))


class Net(parallel.Layer):
    """Column, depthwise on split channels, row; then gathered channels: every use of a split."""

    middle_groups: int = 8

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        split = (None, "channels")
        h = Conv(8, (3, 3), name="column")(x)
        h = Conv(8, (3, 3), groups=self.middle_groups, names=split, in_features=8, name="middle")(h)
        h = jnp.tanh(h)
        wide = Conv(16, (1, 1), 2, names=("channels", "conv_in"), in_features=8, name="row")(h)
        gathered = parallel.gather_channels(h, "channels")
        last = Conv(4, (5, 5), names=split, name="gathered")(gathered)
        return jnp.sum(jnp.square(wide)) + parallel.psum(jnp.sum(last**3), "tensor")


def gradients(net: Net, sizes: dict[str, int], x: jax.Array) -> Any:
    named = jax.jit(net.init)(jax.random.key(0), x)
    mesh = parallel.make_mesh(sizes, jax.devices()) if sizes else None
    rules = parallel.Rules()
    specs = parallel.specs(named, rules, mesh) if mesh is not None else None
    grad = parallel.spmd(
        jax.grad(lambda v, x: net.apply(v, x)),
        mesh,
        rules,
        (specs, parallel.batch_spec(mesh, x.ndim) if mesh is not None else None),
        specs,
    )
    return jax.device_get(jax.jit(grad)(parallel.unbox(named), x))


@pytest.mark.parametrize("sizes", [{"tensor": 4, "fsdp": 2}, {"tensor": 2, "data": 4}], ids=str)
def test_split_channels_give_the_gradients_of_one_device(sizes: dict[str, int]) -> None:
    x = jax.random.normal(jax.random.key(1), (8, 3, 4, 6))
    one, many = gradients(Net(), {}, x), gradients(Net(), sizes, x)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(many), strict=True
    ):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(a).max(), jax.tree_util.keystr(path)


def test_groups_that_a_split_cannot_keep_apart_are_refused() -> None:
    x = jnp.zeros((8, 3, 4, 6))
    with pytest.raises(ValueError, match="2 groups of channels do not divide over mesh.tensor=4"):
        gradients(Net(middle_groups=2), {"tensor": 4, "fsdp": 2}, x)
    weight = parallel.Weight(jnp.zeros((1, 2, 4)), (None, "channels", None))
    run = parallel.spmd(
        lambda x: parallel.conv(x, weight, (1,), ((0, 0),), (1,), groups=2),
        parallel.make_mesh({"tensor": 8}, jax.devices()),
        parallel.Rules(),
        jax.sharding.PartitionSpec(),
        jax.sharding.PartitionSpec(),
    )
    with pytest.raises(ValueError, match="2 groups cannot have its input channels summed"):
        run(jnp.zeros((1, 3, 4)))
