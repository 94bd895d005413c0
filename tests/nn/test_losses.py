"""Losses on one device: definitions, slopes, extremes. Split over a mesh: test_losses_split.py."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from nn import losses

OPTIONS = ({}, {"label_smoothing": 0.1}, {"z_loss": 0.01}, {"label_smoothing": 0.2, "z_loss": 0.1})


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def plain_cross_entropy(
    logits: jax.Array, targets: jax.Array, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> jax.Array:
    """The definition, for probabilities."""
    targets = (1 - label_smoothing) * targets + label_smoothing / logits.shape[-1]
    lse = jax.scipy.special.logsumexp(logits, axis=-1, keepdims=True)
    return -jnp.sum(targets * (logits - lse), axis=-1) + z_loss * jnp.square(lse[..., 0])


def value_and_slope(f: Any, *args: Any) -> Any:
    """f's values and the gradient of a weighted sum of them in the first argument."""

    def weighted(x: jax.Array) -> Any:
        y = f(x, *args[1:])
        return jnp.sum(y * jnp.arange(1.0, y.size + 1).reshape(y.shape)), y

    slope, y = jax.jit(jax.grad(weighted, has_aux=True))(args[0])
    return y, slope


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("soft", [False, True])
def test_cross_entropy_is_the_definition(options: dict[str, float], soft: bool) -> None:
    with jax.enable_x64(True):
        logits = jnp.asarray(3 * normal(0, 4, 3, 7))
        if soft:
            labels = jnp.asarray(scipy.special.softmax(normal(1, 4, 3, 7), axis=-1))
            targets = labels
        else:
            labels = jnp.asarray(np.random.default_rng(1).integers(0, 7, (4, 3)))
            targets = jax.nn.one_hot(labels, 7)
        ours = value_and_slope(lambda x: losses.softmax_cross_entropy(x, labels, **options), logits)
        plain = value_and_slope(lambda x: plain_cross_entropy(x, targets, **options), logits)
        for a, b in zip(ours, plain, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


def test_cross_entropy_has_a_slope_in_soft_labels() -> None:
    logits, targets = jnp.asarray(normal(0, 2, 5)), jnp.asarray(normal(1, 2, 5))
    ours = value_and_slope(lambda t: losses.softmax_cross_entropy(logits, t), targets)
    plain = value_and_slope(lambda t: plain_cross_entropy(logits, t), targets)
    np.testing.assert_allclose(ours[1], plain[1], rtol=1e-5, atol=1e-6)


def test_cross_entropy_second_order() -> None:
    """Hessian-vector products go forward over reverse."""
    with jax.enable_x64(True):
        x, v, label = jnp.asarray(normal(0, 5)), jnp.asarray(normal(1, 5)), jnp.asarray(2)
        grad = jax.grad(lambda x: losses.softmax_cross_entropy(x, label, z_loss=0.1))
        numeric = (grad(x + 1e-6 * v) - grad(x - 1e-6 * v)) / 2e-6
        np.testing.assert_allclose(jax.jvp(grad, (x,), (v,))[1], numeric, atol=1e-8)


@pytest.mark.parametrize("soft", [False, True])
def test_cross_entropy_of_huge_logits(soft: bool) -> None:
    logits = jnp.asarray([[1e38, -1e38, 0.0], [1e30, 1e30, 1e30], [-1e30, 0.0, 1e-30]])
    labels = jnp.asarray([0, 2, 1])
    targets = jax.nn.one_hot(labels, 3) if soft else labels
    y, slope = value_and_slope(lambda x: losses.softmax_cross_entropy(x, targets), logits)
    np.testing.assert_allclose(y, [0.0, np.log(3), np.log(2)], rtol=1e-6)
    assert jnp.isfinite(slope).all()
    np.testing.assert_allclose(slope.sum(axis=1), 0.0, atol=1e-6)


@pytest.mark.parametrize("soft", [False, True])
def test_a_confident_prediction_keeps_its_digits(soft: bool) -> None:
    logits, label = jnp.asarray([1000.0, 988.0]), jnp.asarray(0)
    target = jax.nn.one_hot(label, 2) if soft else label
    y = losses.softmax_cross_entropy(logits, target)
    np.testing.assert_allclose(y, np.log1p(np.exp(-12.0)), rtol=2e-2)  # exp(-12) beside 1


def test_a_label_outside_is_finite_and_can_be_masked() -> None:
    logits, labels = jnp.asarray(normal(0, 3, 4)), jnp.asarray([-100, 4, 2])
    y, slope = value_and_slope(lambda x: losses.softmax_cross_entropy(x, labels), logits)
    assert jnp.isfinite(y).all()
    assert jnp.isfinite(slope).all()


def test_what_cross_entropy_keeps() -> None:
    """The logits in their own type, and a number or two per example."""
    logits, labels = jnp.ones((8, 1024), jnp.bfloat16), jnp.zeros(8, jnp.int32)
    y, pull = jax.vjp(lambda x: losses.softmax_cross_entropy(x, labels), logits)
    assert y.dtype == jnp.float32
    assert pull(y)[0].dtype == jnp.bfloat16
    kept = sum(x.nbytes for x in jax.tree.leaves(pull))
    assert logits.nbytes <= kept <= logits.nbytes + 100


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        (
            jnp.zeros((4, 3), jnp.int32),
            r"integer labels of shape \(4, 3\).*must be of shape \(4,\)",
        ),
        (jnp.zeros(4), r"label probabilities of shape \(4,\).*must be of shape \(4, 3\)"),
    ],
)
def test_labels_of_another_shape(labels: jax.Array, wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        losses.softmax_cross_entropy(jnp.zeros((4, 3)), labels)


def test_rank() -> None:
    nan = float("nan")
    logits = jnp.asarray(
        [
            [3.0, 1.0, 2.0],
            [3.0, 1.0, 2.0],
            [3.0, 1.0, 2.0],
            [1.0, 1.0, 1.0],  # of equals the first is the prediction, as in argmax
            [1.0, 1.0, 1.0],
            [nan, 1.0, 0.0],
            [nan, nan, nan],
            [3.0, 1.0, 2.0],
            [-3.0, -1.0, -2.0],
        ]
    )
    labels = jnp.asarray([0, 1, 2, 0, 2, 1, 0, -1, 3])
    ranks = losses.rank(logits, labels)
    assert ranks.tolist() == [0, 2, 1, 0, 2, 1, 2, 3, 3]
    assert losses.correct(logits, labels).tolist() == [1, 0, 0, 1, 0, 0, 0, 0, 0]


def test_rank_agrees_with_sorting() -> None:
    logits = np.round(normal(0, 50, 9), 1)  # with ties
    labels = np.random.default_rng(1).integers(0, 9, 50)
    order = np.argsort(-logits, axis=1, kind="stable")
    expected = np.argmax(order == labels[:, None], axis=1)
    assert losses.rank(jnp.asarray(logits), jnp.asarray(labels)).tolist() == expected.tolist()


def test_rank_inside_a_gradient() -> None:
    """Objectives compute their accuracy beside the loss."""
    logits, labels = jnp.asarray(normal(0, 3, 4)), jnp.asarray([0, 1, 2])
    assert not jax.grad(lambda x: losses.correct(x, labels).sum())(logits).any()


def test_regression_errors() -> None:
    p, t = jnp.asarray([[0.0, 2.0], [5.0, -1.0]]), jnp.asarray([[0.5, 0.0], [1.0, -1.0]])
    np.testing.assert_allclose(losses.mse(p, t), [[0.25, 4.0], [16.0, 0.0]])
    np.testing.assert_allclose(losses.mae(p, t), [[0.5, 2.0], [4.0, 0.0]])
    np.testing.assert_allclose(losses.huber(p, t), [[0.125, 1.5], [3.5, 0.0]])
    np.testing.assert_allclose(losses.huber(p, t, delta=3.0), [[0.125, 2.0], [7.5, 0.0]])


@pytest.mark.parametrize("name", ["mse", "mae", "huber", "binary_cross_entropy"])
def test_errors_of_other_shapes_or_types(name: str) -> None:
    loss = getattr(losses, name)
    with pytest.raises(ValueError, match=rf"{name}: arrays of shapes \(3, 1\), \(3,\)"):
        loss(jnp.zeros((3, 1)), jnp.zeros(3))
    assert loss(jnp.zeros(3, jnp.bfloat16), jnp.zeros(3, jnp.int32)).dtype == jnp.float32


def test_binary_cross_entropy() -> None:
    x = jnp.asarray([0.0, 2.0, -3.0, 30.0, -30.0, 1e38, -1e38, 30.0])
    y = jnp.asarray([0.0, 1.0, 0.25, 1.0, 0.0, 1.0, 0.0, 0.0])
    values, slope = value_and_slope(lambda x: losses.binary_cross_entropy(x, y), x)
    small = np.log1p(np.exp(-30.0))
    expected = [np.log(2), np.log1p(np.exp(-2)), 0.75 + np.log1p(np.exp(-3)), small, small]
    np.testing.assert_allclose(values, [*expected, 0.0, 0.0, 30 + small], rtol=1e-6)
    weights = np.arange(1.0, 9.0)
    tail = 1 / (1 + np.exp(30.0))
    exact = [0.5, -1 / (1 + np.exp(2)), 1 / (1 + np.exp(3)) - 0.25, -tail, tail, 0.0, 0.0, 1 - tail]
    np.testing.assert_allclose(slope, exact * weights, rtol=1e-6)


def test_contrastive() -> None:
    a, b = jnp.zeros((4, 2)), jnp.asarray([[3.0, 4.0], [3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    same = jnp.asarray([1, 0, 0, 0])
    y, slope = value_and_slope(lambda b: losses.contrastive(a, b, same), b)
    np.testing.assert_allclose(y, [12.5, 0.0, 0.125, 0.5], rtol=1e-6)
    # Pulled in proportion to d, pushed by margin - d; at d = 0 there is no direction.
    expected = [[3.0, 4.0], [0.0, 0.0], [-0.9, -1.2], [0.0, 0.0]]
    np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("squared", [False, True])
def test_triplet(squared: bool) -> None:
    a, p, n = (jnp.asarray(normal(i, 6, 5)) for i in range(3))
    distances = [np.sum(np.square(a - x), axis=1) for x in (p, n)]
    near, far = distances if squared else np.sqrt(distances)
    expected = np.maximum(near - far + 0.7, 0)
    np.testing.assert_allclose(
        losses.triplet(a, p, n, margin=0.7, squared=squared), expected, rtol=1e-5
    )
    grads = jax.grad(lambda a: losses.triplet(a, a, a, squared=squared).sum())(a)
    assert not grads.any()  # all at one point, and no NaN


def test_info_nce() -> None:
    q, k = normal(0, 5, 8), normal(1, 5, 8)
    cosine = (q / np.linalg.norm(q, axis=1)[:, None]) @ (k / np.linalg.norm(k, axis=1)[:, None]).T
    expected = -np.diagonal(scipy.special.log_softmax(cosine / 0.2, axis=1))
    ours = losses.info_nce(jnp.asarray(q), jnp.asarray(k), temperature=0.2)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_nt_xent_is_that_of_optax() -> None:
    a, b = jnp.asarray(normal(0, 6, 4)), jnp.asarray(normal(1, 6, 4))
    both, labels = jnp.concatenate([a, b]), jnp.tile(jnp.arange(6), 2)
    with jax.numpy_rank_promotion("allow"):
        expected = optax.losses.ntxent(both, labels, temperature=0.3)
    ours = losses.nt_xent(a, b, temperature=0.3)
    assert ours.shape == (6,)
    np.testing.assert_allclose(ours.mean(), expected, rtol=1e-5)


@pytest.mark.parametrize("loss", [losses.info_nce, losses.nt_xent])
def test_a_zero_vector_has_a_finite_loss(loss: Any) -> None:
    a = jnp.zeros((3, 4)).at[1].set(1.0)
    y, slope = value_and_slope(lambda a: loss(a, a + 1.0), a)
    assert jnp.isfinite(y).all()
    assert jnp.isfinite(slope).all()


def test_kl_gaussian() -> None:
    mean, spread = jnp.asarray([0.0, 1.5, -2.0]), jnp.asarray([0.0, -1.0, 0.5])
    prior_mean, prior_spread = jnp.asarray([0.0, 1.0, 2.0]), jnp.asarray([0.0, 0.3, -0.2])
    x = np.linspace(-40, 40, 400001)[:, None]

    def log_density(mean: Any, log_variance: Any) -> np.ndarray:
        m, v = np.asarray(mean, np.float64), np.asarray(log_variance, np.float64)
        return -0.5 * (np.log(2 * np.pi) + v + (x - m) ** 2 / np.exp(v))

    p = log_density(mean, spread)
    for prior in ((prior_mean, prior_spread), (jnp.zeros(3), jnp.zeros(3))):
        expected = np.sum(np.exp(p) * (p - log_density(*prior)), axis=0) * (x[1] - x[0])
        np.testing.assert_allclose(
            losses.kl_gaussian(mean, spread, *prior), expected, rtol=1e-5, atol=1e-6
        )
    np.testing.assert_array_equal(
        losses.kl_gaussian(mean, spread), losses.kl_gaussian(mean, spread, 0.0, 0.0)
    )
    near = losses.kl_gaussian(jnp.asarray([0.0]), jnp.asarray([1e-4]))  # not lost in rounding
    np.testing.assert_allclose(near, 0.25e-8, rtol=0.01)


def test_kl_categorical() -> None:
    p, q = 4 * normal(0, 6, 5), 4 * normal(1, 6, 5)
    entropies = scipy.special.rel_entr(scipy.special.softmax(p, 1), scipy.special.softmax(q, 1))
    ours = losses.kl_categorical(jnp.asarray(p), jnp.asarray(q))
    np.testing.assert_allclose(ours, entropies.sum(axis=1), rtol=1e-5)
    excluded = jnp.asarray([0.0, 1.0, -jnp.inf])
    y, slope = value_and_slope(
        lambda p: losses.kl_categorical(p, jnp.zeros((1, 3))), excluded[None]
    )
    np.testing.assert_allclose(
        y, losses.kl_categorical(excluded[:2], jnp.zeros(2)) + np.log(1.5), rtol=1e-6
    )
    assert jnp.isfinite(slope).all()
    assert jnp.isfinite(losses.kl_categorical(excluded, excluded))
