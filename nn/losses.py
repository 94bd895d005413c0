"""What objectives measure with. Nothing here reduces over a batch: callers form (total, count).

`mse`, `mae`, `huber`, `binary_cross_entropy` and `kl_gaussian` give one value per element, the
others one per example, over the last dimension (classes or features). Arithmetic is in float32 at
least. The classes of `softmax_cross_entropy` and the examples of `info_nce` and `nt_xent` may be
split over mesh axes, which `axis_name` then names: the values are those of one device.

Legend: B examples of this shard, A of all shards, D features, V classes (v: of this shard).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from nn.activations import softplus
from nn.parallel import collectives

AxisName = str | tuple[str, ...] | None


def _wide(x: jax.Array) -> jax.Array:
    """Float32 at least."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _same_shape(name: str, *arrays: jax.Array) -> list[jax.Array]:
    """The arrays, wide; raises ValueError where broadcasting would hide a mistake."""
    shapes = [x.shape for x in arrays]
    if len(set(shapes)) != 1:
        raise ValueError(f"{name}: arrays of shapes {', '.join(map(str, shapes))}; must be equal")
    return [_wide(x) for x in arrays]


def mse(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """(prediction - target)^2, one value per element."""
    predictions, targets = _same_shape("mse", predictions, targets)
    return jnp.square(predictions - targets)


def mae(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """|prediction - target|, one value per element."""
    predictions, targets = _same_shape("mae", predictions, targets)
    return jnp.abs(predictions - targets)


def huber(predictions: jax.Array, targets: jax.Array, delta: float = 1.0) -> jax.Array:
    """Half the squared error up to `delta`, linear beyond; one value per element (Huber 1964)."""
    predictions, targets = _same_shape("huber", predictions, targets)
    error = jnp.abs(predictions - targets)
    return jnp.where(error < delta, 0.5 * jnp.square(error), delta * (error - 0.5 * delta))


def binary_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-label log p - (1 - label) log(1 - p), p = sigmoid(logit); one value per element (nats).

    labels: probabilities, in the shape of the logits.
    """
    logits, labels = _same_shape("binary_cross_entropy", logits, labels)
    return labels * softplus(-logits) + (1 - labels) * softplus(logits)


def softmax_cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    axis_name: AxisName = None,
) -> jax.Array:
    """-sum_v target_v log softmax(logits)_v (nats) + z_loss * log(sum_v exp(logits_v))^2.

    With integer labels the backward pass keeps the logits, as they came, and two numbers per
    example. Such a label outside of 0 .. V-1 gives a finite value without meaning, to be masked.

    Args:
      logits: (..., V), or this shard's part (..., v) of the classes.
      labels: integers (...), counted over all V classes, or probabilities like the logits.
      label_smoothing: share of the target spread evenly over V (Szegedy et al. 2016, section 7).
      z_loss: weight of the squared log-partition (Chowdhery et al. 2022, section 5).
      axis_name: mesh axes over which the classes are split, if they are.
    Returns:
      (...), float32, or float64 for such logits.
    Raises:
      ValueError: the labels have neither of the two shapes.
    """
    integer = jnp.issubdtype(labels.dtype, jnp.integer)
    wanted = logits.shape[:-1] if integer else logits.shape
    if labels.shape != wanted:
        kind = "integer labels" if integer else "label probabilities"
        raise ValueError(
            f"softmax_cross_entropy: {kind} of shape {labels.shape} for logits of shape "
            f"{logits.shape}: they must be of shape {wanted}"
        )
    if integer:
        # A custom_vjp returns gradients of exactly its arguments' types: it must be told here
        # that logits which are the same everywhere meet labels which are not.
        logits = collectives.vary(logits, collectives.varying(labels))
        return _integer_cross_entropy(label_smoothing, z_loss, axis_name, logits, labels)
    x, y = _wide(logits), _wide(labels)
    top = _highest(x, axis_name)
    x = x - top[..., None]
    lse = jnp.log(_total(jnp.exp(x), axis_name))
    mass, overlap = _total(y, axis_name), _total(x * y, axis_name)
    if label_smoothing:
        keep, even = 1 - label_smoothing, label_smoothing / _classes(logits, axis_name)
        mass = keep * mass + label_smoothing
        overlap = keep * overlap + even * _total(x, axis_name)
    loss = lse * mass - overlap
    return loss + z_loss * jnp.square(lse + top) if z_loss else loss


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _integer_cross_entropy(
    smoothing: float, z_loss: float, axis_name: AxisName, logits: jax.Array, labels: jax.Array
) -> jax.Array:
    return _integer_forward(smoothing, z_loss, axis_name, logits, labels)[0]


Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def _integer_forward(
    smoothing: float, z_loss: float, axis_name: AxisName, logits: jax.Array, labels: jax.Array
) -> tuple[jax.Array, Residuals]:
    x = _wide(logits)
    top = _highest(x, axis_name)
    # From the largest logit, so that the loss of a confident prediction keeps its digits.
    below = _own(x, labels, top, axis_name)
    log_sum = jnp.log(_total(jnp.exp(x - top[..., None]), axis_name))
    loss = log_sum - below
    if smoothing:
        mean = _total(x - top[..., None], axis_name) / _classes(logits, axis_name)
        loss = loss + smoothing * (below - mean)
    if z_loss:
        loss = loss + z_loss * jnp.square(log_sum + top)
    return loss, (logits, labels, top, log_sum)


def _integer_backward(
    smoothing: float, z_loss: float, axis_name: AxisName, residuals: Residuals, g: jax.Array
) -> tuple[jax.Array, None]:
    logits, labels, top, log_sum = residuals
    # Two subtractions: beside a large logit, top + log_sum would lose the digits of log_sum.
    p = jnp.exp(_wide(logits) - top[..., None] - log_sum[..., None])
    if z_loss:
        p = p * (1 + 2 * z_loss * (log_sum + top))[..., None]
    off = smoothing / _classes(logits, axis_name)
    own = _class_numbers(logits, axis_name) == labels[..., None]
    slope = p - jnp.where(own, 1 - smoothing + off, off)
    return (slope * g[..., None]).astype(logits.dtype), None


_integer_cross_entropy.defvjp(_integer_forward, _integer_backward)


def _classes(x: jax.Array, axis_name: AxisName) -> int:
    """Size of the last dimension over all shards."""
    return x.shape[-1] * collectives.shards(x, axis_name or ())


def _first_class(x: jax.Array, axis_name: AxisName) -> jax.Array | int:
    """Number of the first class that this shard holds."""
    split = collectives.shards(x, axis_name or ()) > 1
    return collectives.axis_index(axis_name or ()) * x.shape[-1] if split else 0


def _class_numbers(x: jax.Array, axis_name: AxisName) -> jax.Array:
    """The number of the class beside each logit, in the shape (1, ..., 1, v)."""
    shape = (1,) * (x.ndim - 1) + x.shape[-1:]
    return lax.broadcasted_iota(jnp.int32, shape, x.ndim - 1) + _first_class(x, axis_name)


def _total(x: jax.Array, axis_name: AxisName) -> jax.Array:
    """Sum over the classes of all shards."""
    return collectives.psum(jnp.sum(x, axis=-1), axis_name or ())


def _highest(x: jax.Array, axis_name: AxisName) -> jax.Array:
    """Maximum over the classes of all shards, without a gradient."""
    return collectives.pmax(lax.stop_gradient(jnp.max(x, axis=-1)), axis_name or ())


def _own(x: jax.Array, labels: jax.Array, origin: jax.Array, axis_name: AxisName) -> jax.Array:
    """Each label's own logit less `origin`, wherever its class is held; 0 where it is nowhere."""
    local = labels - _first_class(x, axis_name)
    here = (local >= 0) & (local < x.shape[-1])
    found = jnp.take_along_axis(x, jnp.where(here, local, 0)[..., None], axis=-1)[..., 0] - origin
    return collectives.psum(jnp.where(here, found, jnp.zeros((), x.dtype)), axis_name or ())


def rank(logits: jax.Array, labels: jax.Array, *, axis_name: AxisName = None) -> jax.Array:
    """How many classes come before the label's own when sorted by logit: 0 is a hit. int32 (...).

    Of equal logits the lower class comes first, as in argmax. A NaN comes before everything, so
    that a broken model is never right. Arguments as in `softmax_cross_entropy`; integer labels.
    """
    x = lax.stop_gradient(_wide(logits))
    own = _own(x, labels, jnp.zeros((), x.dtype), axis_name)[..., None]
    number, label = _class_numbers(x, axis_name), labels[..., None]
    before = jnp.where(number < label, ~(x < own), ~(x <= own)) & (number != label)
    missing = (labels < 0) | (labels >= _classes(x, axis_name))
    ranks = _total(before.astype(jnp.int32), axis_name)
    return jnp.where(missing, _classes(x, axis_name), ranks)


def correct(logits: jax.Array, labels: jax.Array, *, axis_name: AxisName = None) -> jax.Array:
    """1.0 where the label's logit is the highest (see `rank`), else 0.0; float32 (...)."""
    return (rank(logits, labels, axis_name=axis_name) == 0).astype(jnp.float32)


def _distance(a: jax.Array, b: jax.Array, squared: bool = False) -> jax.Array:
    """Euclidean distance over the last dimension; its slope at 0 is 0."""
    square = jnp.sum(jnp.square(a - b), axis=-1)
    if squared:
        return square
    apart = square > 0
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1.0)), 0.0)


def contrastive(a: jax.Array, b: jax.Array, same: jax.Array, margin: float = 1.0) -> jax.Array:
    """Half of d^2 for a pair of the same kind, of max(0, margin - d)^2 for others.

    Hadsell, Chopra & LeCun 2006, eq. 4, with same = 1 - Y and d the Euclidean distance.
    a, b: (..., D); same: (...), 1 or 0. Returns (...).
    """
    a, b = _same_shape("contrastive", a, b)
    d = _distance(a, b)
    pull, push = jnp.square(d), jnp.square(jnp.maximum(margin - d, 0.0))
    return 0.5 * jnp.where(same.astype(bool), pull, push)


def triplet(
    anchor: jax.Array,
    positive: jax.Array,
    negative: jax.Array,
    margin: float = 1.0,
    squared: bool = False,
) -> jax.Array:
    """max(0, d(anchor, positive) - d(anchor, negative) + margin), (..., D) -> (...).

    squared: of squared distances (Schroff, Kalenichenko & Philbin 2015, eq. 3); else Euclidean
    (Balntas et al. 2016).
    """
    a, p, n = _same_shape("triplet", anchor, positive, negative)
    return jnp.maximum(_distance(a, p, squared) - _distance(a, n, squared) + margin, 0.0)


def _unit(x: jax.Array) -> jax.Array:
    """x / |x| over the last dimension; 0 stays 0."""
    return x * lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))


def _first_example(x: jax.Array, axis_name: AxisName) -> jax.Array:
    return jnp.arange(x.shape[0]) + collectives.axis_index(axis_name or ()) * x.shape[0]


def info_nce(
    queries: jax.Array, keys: jax.Array, temperature: float = 0.1, axis_name: AxisName = None
) -> jax.Array:
    """Cross-entropy of finding each query's own key among all keys, by cosine / temperature.

    van den Oord, Li & Vinyals 2018, eq. 4. Half the sum of both directions is CLIP's loss.
    queries, keys: (B, D), pairs in order; axis_name: mesh axes that split the examples, whose keys
    are then negatives on every shard. Returns (B,).
    """
    q, k = _same_shape("info_nce", queries, keys)
    k_AD = collectives.all_gather(_unit(k), axis_name or (), 0)
    return softmax_cross_entropy(_unit(q) @ k_AD.T / temperature, _first_example(q, axis_name))


def nt_xent(
    a: jax.Array, b: jax.Array, temperature: float = 0.5, axis_name: AxisName = None
) -> jax.Array:
    """SimCLR's loss (Chen et al. 2020, eq. 1): each view finds the other among 2A - 1.

    a, b: (B, D), two views of each example; axis_name: as in `info_nce`.
    Returns (B,), the mean over the two views of an example.
    """
    a, b = (_unit(x) for x in _same_shape("nt_xent", a, b))
    a_AD, b_AD = (collectives.all_gather(x, axis_name or (), 0) for x in (a, b))
    label = _first_example(a, axis_name)
    itself = label[:, None] == jnp.arange(a_AD.shape[0])[None]

    def one(view: jax.Array, same_AD: jax.Array, other_AD: jax.Array) -> jax.Array:
        alike = jnp.where(itself, -1e30, view @ same_AD.T / temperature)
        logits = jnp.concatenate([view @ other_AD.T / temperature, alike], axis=1)
        return softmax_cross_entropy(logits, label)

    return 0.5 * (one(a, a_AD, b_AD) + one(b, b_AD, a_AD))


def kl_gaussian(
    mean: jax.Array,
    log_variance: jax.Array,
    prior_mean: jax.Array | float = 0.0,
    prior_log_variance: jax.Array | float = 0.0,
) -> jax.Array:
    """KL(N(mean, var) || N(prior_mean, prior_var)) per element (nats); independent ones add up.

    Kingma & Welling 2013, appendix B, for the standard prior.
    """
    mean, log_variance = _same_shape("kl_gaussian", mean, log_variance)
    ratio = log_variance - prior_log_variance
    shift = jnp.square(mean - prior_mean) * jnp.exp(-jnp.asarray(prior_log_variance, mean.dtype))
    return 0.5 * (jnp.expm1(ratio) - ratio + shift)


def kl_categorical(p_logits: jax.Array, q_logits: jax.Array) -> jax.Array:
    """KL(softmax(p) || softmax(q)), (..., V) -> (...) (nats; Kullback & Leibler 1951).

    A class that p excludes by a logit of -inf counts nothing.
    """
    p, q = _same_shape("kl_categorical", p_logits, q_logits)
    possible = p > -jnp.inf
    log_p, log_q = jax.nn.log_softmax(p, axis=-1), jax.nn.log_softmax(q, axis=-1)
    log_ratio = jnp.where(possible, log_p, 0.0) - jnp.where(possible, log_q, 0.0)
    return jnp.sum(jnp.exp(log_p) * log_ratio, axis=-1)
