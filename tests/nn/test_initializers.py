"""Initial weights: moments, fans, orthogonality, names."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn import initializers

KEY = jax.random.key(0)
SCALED = {
    "he_normal": lambda i, o: 2 / i,
    "he_uniform": lambda i, o: 2 / i,
    "he_truncated": lambda i, o: 2 / i,
    "glorot_normal": lambda i, o: 2 / (i + o),
    "glorot_uniform": lambda i, o: 2 / (i + o),
    "glorot_truncated": lambda i, o: 2 / (i + o),
    "lecun_normal": lambda i, o: 1 / i,
    "lecun_uniform": lambda i, o: 1 / i,
    "lecun_truncated": lambda i, o: 1 / i,
}


@pytest.mark.parametrize("name", SCALED)
def test_moments(name: str) -> None:
    x = np.asarray(initializers.get(name)(KEY, (300, 500)))
    std = math.sqrt(SCALED[name](300, 500))
    assert x.dtype == np.float32
    assert abs(x.mean()) < 5 * std / math.sqrt(x.size)
    assert x.std() == pytest.approx(std, rel=0.01)
    largest = np.abs(x).max() / std
    if name.endswith("uniform"):
        assert math.sqrt(3) * 0.999 < largest <= math.sqrt(3)
    elif name.endswith("truncated"):
        assert 2.2 < largest <= 2 / 0.8796  # two of the parent's deviations
    else:
        assert largest > 4


def test_fixed_scales() -> None:
    shape = (400, 300)
    for std in (0.02, 1.5):
        assert np.std(initializers.normal(std)(KEY, shape)) == pytest.approx(std, rel=0.01)
        cut = np.asarray(initializers.truncated_normal(std)(KEY, shape))
        assert cut.std() == pytest.approx(std, rel=0.01)
        assert np.abs(cut).max() <= 2.28 * std
        flat = np.asarray(initializers.uniform(std)(KEY, shape))
        assert 0.99 * std < np.abs(flat).max() <= std
    assert initializers.zeros(KEY, shape).sum() == 0
    assert initializers.ones(KEY, shape).mean() == 1
    assert initializers.get("constant", value=-1.5)(KEY, (2, 3)).tolist() == [[-1.5] * 3] * 2


@pytest.mark.parametrize(
    ("shape", "axes", "expected"),
    [
        ((8, 3), {}, (8, 3)),
        ((8, 3, 5), {"in_axes": 0, "out_axes": (1, 2)}, (8, 15)),  # to heads
        ((3, 5, 8), {"in_axes": (0, 1), "out_axes": 2}, (15, 8)),  # from heads
        ((3, 3, 16, 32), {"in_axes": -2, "out_axes": -1}, (144, 288)),  # convolution
        ((4, 8, 3), {"in_axes": 1, "out_axes": 2, "stack_axes": 0}, (8, 3)),  # experts
    ],
)
def test_fans(shape: tuple[int, ...], axes: dict[str, int], expected: tuple[int, int]) -> None:
    assert initializers.fans(shape, **axes) == expected
    x = initializers.he_normal(**axes)(KEY, shape)
    assert np.std(np.asarray(x)) == pytest.approx(math.sqrt(2 / expected[0]), rel=0.2)


def test_axes_that_are_not_clear() -> None:
    with pytest.raises(ValueError, match=r"shape \(8, 3, 5\): only a matrix .* pass in_axes"):
        initializers.lecun_normal()(KEY, (8, 3, 5))
    with pytest.raises(ValueError, match="one axis is in two"):
        initializers.fans((8, 3, 5), in_axes=0, out_axes=-3)
    with pytest.raises(ValueError, match="axis 3 of a kernel with 3 dimensions"):
        initializers.fans((8, 3, 5), in_axes=0, out_axes=3)


def test_signal_keeps_its_scale_over_fifty_layers() -> None:
    """What the scalings are for: He with relu, LeCun with no activation."""
    x = jax.random.normal(KEY, (64, 256))

    def layer(x: tuple[jax.Array, jax.Array], key: jax.Array) -> tuple[Any, None]:
        rectified = jax.nn.relu(x[0]) @ initializers.he_normal()(key, (256, 256))
        return (rectified, x[1] @ initializers.lecun_truncated()(key, (256, 256))), None

    for out in jax.lax.scan(layer, (x, x), jax.random.split(KEY, 50))[0]:
        assert 0.2 < jnp.var(out) < 5


@pytest.mark.parametrize(
    ("shape", "axes", "rows"),
    [
        ((12, 5), {}, 12),
        ((5, 12), {}, 5),
        ((8, 3, 4), {"in_axes": 0, "out_axes": (1, 2)}, 8),
        ((3, 4, 8), {"in_axes": (0, 1), "out_axes": 2}, 12),
        ((3, 3, 2, 7), {"in_axes": -2, "out_axes": -1}, 18),
    ],
)
def test_orthogonal(shape: tuple[int, ...], axes: dict[str, int], rows: int) -> None:
    x = initializers.orthogonal(2.0, **axes)(KEY, shape)
    assert x.shape == shape
    matrix = np.asarray(x).reshape(rows, -1)
    small = matrix @ matrix.T if rows <= matrix.shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(small, 4 * np.eye(len(small)), atol=1e-5)


def test_orthogonal_stack_and_output_axes_in_front() -> None:
    x = np.asarray(initializers.orthogonal(in_axes=2, out_axes=0, stack_axes=1)(KEY, (4, 3, 6)))
    for i in range(3):
        np.testing.assert_allclose(x[:, i] @ x[:, i].T, np.eye(4), atol=1e-6)
    assert not np.allclose(x[:, 0], x[:, 1])


def test_orthogonal_is_uniform() -> None:
    """Without the correction of signs the diagonal of r, hence the first column, is biased."""
    draws = jax.vmap(lambda key: initializers.orthogonal()(key, (3, 3)))(
        jax.random.split(KEY, 4000)
    )
    assert np.abs(np.asarray(draws).mean(axis=0)).max() < 0.05


@pytest.mark.parametrize("name", sorted(initializers.INITIALIZERS.keys() - {"constant"}))
def test_by_name_in_half_precision(name: str) -> None:
    x = initializers.get(name)(KEY, (6, 4), jnp.bfloat16)
    assert (x.shape, x.dtype) == ((6, 4), jnp.bfloat16)
    assert jnp.isfinite(x).all()


def test_lookup() -> None:
    with pytest.raises(ValueError, match="unknown initializer 'he_norm': .*nearest: 'he_normal'"):
        initializers.get("he_norm")
    with pytest.raises(ValueError, match="unknown fan 'inn': choose from in, mean, out"):
        initializers.variance_scaling(1.0, "inn", "normal")
    with pytest.raises(ValueError, match="unknown distribution 'gauss'"):
        initializers.variance_scaling(1.0, "in", "gauss")


@pytest.mark.parametrize("name", initializers.INITIALIZERS)
def test_what_is_drawn_says_how_far_it_spreads(name: str) -> None:
    options = {"constant": {"value": 2.0}}
    init = initializers.get(name, **(options[name] if name in options else {}))
    if name in ("zeros", "ones", "constant"):
        assert not hasattr(init, "stddev")
        return
    for shape in ((60, 90), (120, 40)):
        assert np.std(init(KEY, shape)) == pytest.approx(init.stddev(shape), rel=0.05)


def test_the_spread_of_stacked_kernels() -> None:
    for make in (initializers.orthogonal, initializers.he_normal):
        init = make(in_axes=(1, 2), out_axes=3, stack_axes=0)
        shape = (3, 5, 16, 50)
        assert np.std(init(KEY, shape)) == pytest.approx(init.stddev(shape), rel=0.05)
