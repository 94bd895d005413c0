"""Contrast: the losses are those of the papers, over the batch of all shards."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from nn import parallel
from nn.families import clip
from nn.learning import backprop
from nn.objectives import contrast
from nn.parallel import BATCH_AXES
from tests import parallel_cases as cases

KEY = jax.random.key(0)


@functools.cache
def setting() -> tuple[Any, Any, dict[str, Any]]:
    config = clip.tiny()
    model = clip.Model(config)
    params = parallel.unbox(jax.jit(model.init)(KEY, *clip.example(config, 2)))["params"]
    # Features that differ: initial ones are all alike.
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + rng.normal(0, 0.1, x.shape), params)
    return model, {"params": params}, cases.batch_of("clip", config)


def means(loss: str, batch: dict[str, Any], train: bool = True) -> dict[str, float]:
    model, variables, _ = setting()
    options = contrast.Config(loss=loss)
    run = jax.jit(lambda v, b: contrast.sums(options, model, v, b, KEY, train=train)[0])
    return {k: float(total / count) for k, (total, count) in run(variables, batch).items()}


def similarities(batch: dict[str, Any]) -> np.ndarray:
    """Logits of the examples that count, (images, texts)."""
    model, variables, _ = setting()
    logits = model.apply(variables, batch["inputs"], batch["tokens"])
    own = np.flatnonzero(batch["mask"])
    return np.asarray(logits, np.float64)[np.ix_(own, own)]


def test_softmax_is_cross_entropy_in_both_directions() -> None:
    *_, batch = setting()
    x = similarities(batch)
    nll = [np.log(np.exp(y).sum(axis=1)) - np.diag(y) for y in (x, x.T)]
    found = means("softmax", batch)
    assert found["loss"] == pytest.approx(np.mean(nll), rel=1e-5)
    hits = (x.argmax(axis=1) == np.arange(len(x))).mean()
    assert found["accuracy"] == pytest.approx(hits)
    assert found["text_accuracy"] == pytest.approx((x.argmax(axis=0) == np.arange(len(x))).mean())


def test_sigmoid_judges_every_pair() -> None:
    *_, batch = setting()
    x = similarities(batch)
    signs = 2 * np.eye(len(x)) - 1
    want = np.log1p(np.exp(-signs * x)).sum() / len(x)
    assert means("sigmoid", batch)["loss"] == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("loss", contrast.LOSSES)
def test_the_batch_is_that_of_all_shards(loss: str) -> None:
    """Losses and gradients of one device, to which parts of the batch alone would not lead."""
    model, variables, batch = setting()
    options = contrast.Config(loss=loss)

    def total(variables: Any, batch: Any) -> Any:
        found, _ = contrast.sums(options, model, variables, batch, KEY, train=True)
        return found["loss"][0], found

    gradient = jax.value_and_grad(total, has_aux=True)
    (want, _), want_grads = jax.jit(gradient)(variables, batch)
    mesh = parallel.make_mesh({"data": 2, "fsdp": 2, "expert": 2})

    def local(variables: Any, batch: Any) -> Any:
        (_, found), grads = gradient(variables, batch)
        return jax.tree.map(lambda x: parallel.psum(x, BATCH_AXES), found["loss"][0]), grads

    spec = P(BATCH_AXES)
    plain = parallel.Rules(dict.fromkeys(parallel.Rules().weights))
    run = parallel.spmd(local, mesh, plain, in_specs=(P(), spec), out_specs=(P(), P()))
    got, got_grads = jax.jit(run)(variables, batch)
    assert float(got) == pytest.approx(float(want), rel=1e-5)
    error, where = cases.worst(got_grads, want_grads)
    assert error <= 1e-5, where
    halves = [{k: x[i::2] for k, x in batch.items()} for i in range(2)]
    alone = sum(float(jax.jit(total)(variables, half)[0]) for half in halves)
    assert abs(alone - float(want)) > 0.01 * float(want)


def test_a_large_factor_counts_as_the_largest() -> None:
    model, variables, batch = setting()
    grown = {"params": {**variables["params"], "logit_scale": jnp.full((1,), 9.0)}}
    found = [
        contrast.sums(contrast.Config(), model, v, batch, KEY, train=False)[0]["loss"][0]
        for v in (grown, {"params": {**grown["params"], "logit_scale": jnp.log(100.0)[None]}})
    ]
    np.testing.assert_allclose(*found, rtol=1e-5)


def test_zero_shot_is_by_the_nearest_choice() -> None:
    model, variables, batch = setting()
    rng = np.random.default_rng(1)
    choices = rng.integers(0, 40, (5, 11)).astype(np.int32)
    given = batch | {
        "choices": np.broadcast_to(choices, (16, 5, 11)),
        "labels": rng.integers(0, 5, 16).astype(np.int32),
    }
    logits = model.apply(variables, batch["inputs"], jnp.asarray(choices))
    hits = (np.asarray(logits).argmax(axis=1) == given["labels"]) * batch["mask"]
    found = means("softmax", given, train=False)
    assert found["zero_shot"] == pytest.approx(hits.sum() / batch["mask"].sum())
    assert "zero_shot" not in means("softmax", given, train=True)


def test_parts_of_a_batch_are_refused() -> None:
    rules = parallel.Rules()
    with pytest.raises(ValueError, match="rule.accumulate=2: .* nearest: rule.accumulate=1"):
        cases.make_rule("clip", clip.tiny(), {}, rules, accumulate=2)
    assert isinstance(cases.make_rule("clip", clip.tiny(), {}, rules), backprop.Rule)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"loss": "hinge"}, "unknown objective.loss 'hinge'"), ({"max_scale": 0.0}, "max_scale=0.0")],
    ids=str,
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        contrast.Config(**options)
