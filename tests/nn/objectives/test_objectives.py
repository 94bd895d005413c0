"""Objectives: sums and counts, so that masks and pieces of a batch are exact."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from launch.run.state import initial_state
from launch.run.step import to_mesh
from nn import parallel
from nn.layers.dense import Dense
from nn.learning import backprop
from nn.learning.task import Task
from nn.objectives import classify, next_token, regress
from tests import parallel_cases as cases

KEY = jax.random.key(0)


def setting(name: str) -> tuple[Any, Any, dict[str, Any]]:
    family = cases.family(name)
    model = family.Model(family.tiny())
    variables = parallel.unbox(model.init(KEY, *family.example(family.tiny(), 2)))
    variables = {k: v for k, v in variables.items() if k != "intermediates"}
    return model, variables, dict(cases.batch_of(name, family.tiny()))


def mean(sums: Any, name: str = "loss") -> float:
    total, count = sums[name]
    return float(total / count)


def test_next_token_equals_the_formula() -> None:
    model, variables, batch = setting("transformer")
    sums, _ = next_token.sums(next_token.Config(), model, variables, batch, KEY, train=False)
    logits = model.apply(
        variables, batch["inputs"], positions_BT=batch["positions"], segments_BT=batch["segments"]
    )
    p = np.asarray(jax.nn.log_softmax(logits.astype(jnp.float32)), np.float64)
    nll = -np.take_along_axis(p, batch["targets"][..., None], axis=-1)[..., 0]
    mask = batch["mask"]
    assert mean(sums) == pytest.approx((nll * mask).sum() / mask.sum(), rel=1e-5)
    hits = (p.argmax(axis=-1) == batch["targets"]) * mask
    assert mean(sums, "accuracy") == pytest.approx(hits.sum() / mask.sum(), rel=1e-5)


@pytest.mark.parametrize("chunks", [2, 4])
def test_chunks_change_nothing(chunks: int) -> None:
    model, variables, batch = setting("transformer")

    def loss(variables: Any, chunks: int) -> jax.Array:
        options = next_token.Config(chunks=chunks, z_loss=1e-3, label_smoothing=0.1)
        sums, _ = next_token.sums(options, model, variables, batch, KEY, train=False)
        return sums["loss"][0]

    whole, pieces = (jax.value_and_grad(loss)(variables, c) for c in (1, chunks))
    assert float(pieces[0]) == pytest.approx(float(whole[0]), rel=1e-6)
    assert cases.worst(pieces[1], whole[1])[0] < 1e-5
    with pytest.raises(ValueError, match="chunks=3 does not divide 16 positions"):
        loss(variables, 3)


@pytest.mark.parametrize("name, objective", [("transformer", next_token), ("mlp", classify)])
def test_masked_examples_do_not_count(name: str, objective: Any) -> None:
    model, variables, batch = setting(name)
    batch["mask"] = np.zeros_like(batch["mask"])
    batch["mask"][:5] = 1
    options = objective.Config()
    part = {key: x[:5] for key, x in batch.items()}
    whole, _ = objective.sums(options, model, variables, batch, KEY, train=False)
    alone, _ = objective.sums(options, model, variables, part, KEY, train=False)
    for metric in whole:
        assert mean(whole, metric) == pytest.approx(mean(alone, metric), rel=1e-5), metric


def test_mixup_weighs_two_labels() -> None:
    model, variables, batch = setting("mlp")
    options = classify.Config()

    def loss(labels: np.ndarray, **more: np.ndarray) -> float:
        mixed = {**batch, "labels": labels, **more}
        sums, _ = classify.sums(options, model, variables, mixed, KEY, train=False)
        return mean(sums)

    first, second = batch["labels"], np.roll(batch["labels"], 1)
    share = np.full(len(first), 0.3, np.float32)
    expected = 0.3 * loss(first) + 0.7 * loss(second)
    assert loss(first, labels_mixed=second, mix=share) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("error", ["mse", "mae", "huber"])
def test_regress(error: str) -> None:
    model, variables, batch = setting("mlp")
    out = np.asarray(model.apply(variables, batch["inputs"]))
    targets = np.random.default_rng(0).normal(size=out.shape).astype(np.float32)
    batch = {"inputs": batch["inputs"], "targets": targets, "mask": batch["mask"]}
    sums, _ = regress.sums(regress.Config(error=error), model, variables, batch, KEY, train=False)
    difference = np.abs(out - targets)
    each = {
        "mse": difference**2,
        "mae": difference,
        "huber": np.where(difference < 1, 0.5 * difference**2, difference - 0.5),
    }[error].mean(axis=1)
    expected = (each * batch["mask"]).sum() / batch["mask"].sum()
    assert mean(sums) == pytest.approx(float(expected), rel=1e-5)
    assert {"mse", "mae"} <= sums.keys()


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match="nearest: 'huber'"):
        regress.Config(error="hubber")
    with pytest.raises(ValueError, match="label_smoothing"):
        classify.Config(label_smoothing=1.0)
    with pytest.raises(ValueError, match="at least 1"):
        next_token.Config(chunks=0)


class Linear(parallel.Layer):
    """Logits of `classes` classes, which `tensor` splits."""

    classes: int
    train: bool = False

    @property
    def classes_axis(self) -> str | None:
        return parallel.split_axis("vocab", self.classes)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return Dense(self.classes, names=(None, "vocab"), name="output")(x)


@pytest.mark.parametrize("classes", [12, 6, 5])
def test_top5_and_split_classes(classes: int) -> None:
    """Against a sort; on one device, with split classes, and where tensor does not divide them."""
    rng = np.random.default_rng(classes)
    inputs = rng.normal(size=(16, 7)).astype(np.float32)
    labels = rng.integers(0, classes, 16).astype(np.int32)
    mask = (np.arange(16) % 5 > 0).astype(np.float32)
    found = []
    for sizes in ({"data": 1}, {"tensor": 4, "data": 2}):
        task = Task(
            model=Linear(classes),
            example=(jnp.asarray(inputs[:2]),),
            objective=classify,
            objective_config=classify.Config(label_smoothing=0.1),
            optimizer=optax.sgd(0.1),
            mesh=parallel.make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))]),
        )
        rule = backprop.Rule(backprop.Config(), task)
        state = initial_state(rule, 0)
        batch = {"inputs": inputs, "labels": labels, "mask": mask}
        sums = jax.jit(rule.evaluate)(state, to_mesh(rule, batch))
        found.append({name: mean(sums, name) for name in sums})
    dense = jax.device_get(state.params)["output"]
    order = np.argsort(-(inputs @ dense["kernel"] + dense["bias"]), axis=1, kind="stable")
    wanted = {
        name: ((order[:, :k] == labels[:, None]).any(axis=1) * mask).sum() / mask.sum()
        for name, k in (("accuracy", 1), ("top5_accuracy", 5))
        if k < classes
    }
    assert {name for name in found[0] if name != "loss"} == wanted.keys()
    for name, value in wanted.items():
        assert found[0][name] == pytest.approx(value, rel=1e-6), name
    assert found[1] == pytest.approx(found[0], rel=1e-5)
