"""Log-likelihoods: windows, against the softmax of a full pass, and the same on every mesh."""

from __future__ import annotations

import dataclasses
import functools
import math
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from launch.run import likelihood
from launch.run.likelihood import Request, Scorer, windows
from nn import parallel
from nn.families import transformer
from nn.learning.task import Task
from nn.objectives import next_token

CONFIG = dataclasses.replace(
    transformer.tiny(), vocab_size=48, context_length=16, num_heads=8, num_layers=4, init_std=0.2
)
RNG = np.random.default_rng(0)
MESHES: dict[str, tuple[dict[str, int], dict[str, Any], Any]] = {
    "one device": ({"data": 1}, {}, CONFIG),
    "data 2, fsdp 4": ({"data": 2, "fsdp": 4}, {}, CONFIG),
    "tensor 8, its sequence split": ({"tensor": 8}, {"sequence_parallel": True}, CONFIG),
    "ring over context 4, tensor 2": ({"context": 4, "tensor": 2}, {}, CONFIG),
    "ulysses over context 8": ({"context": 8}, {"attention": "ulysses"}, CONFIG),
    "pipe 4, tensor 2": ({"pipe": 4, "tensor": 2}, {"microbatches": 2}, CONFIG),
    "a vocabulary that tensor does not divide": (
        {"pipe": 2, "tensor": 4},
        {"microbatches": 2, "sequence_parallel": True},
        dataclasses.replace(CONFIG, vocab_size=47, context_length=14),
    ),
}


@functools.cache
def scorer(config: Any = CONFIG, rows: int = 3, mesh: str = "one device") -> Scorer:
    """Of a decoder with initial weights, on a mesh of the first devices; compiled once."""
    sizes, use = MESHES[mesh][:2]
    count = math.prod(sizes.values())
    task = Task(
        model=transformer.Model(config),
        example=transformer.example(config, 2),
        objective=next_token,
        objective_config=next_token.Config(),
        optimizer=optax.identity(),
        mesh=parallel.make_mesh(sizes, jax.devices()[:count]),
        rules=parallel.Rules(**use),
    )
    places = parallel.shardings(task.mesh, task.variable_specs())
    made = jax.jit(lambda: parallel.unbox(task.variables(0)), out_shardings=places)()
    return Scorer(task, made, config.context_length, rows)


def requests(config: Any = CONFIG) -> list[Request]:
    """Ragged; the last two are longer than the context, the last by its continuation."""
    sizes = [(2, 1), (9, 4), (17, 16), (5, 1), (13, 3), (17, 1), (30, 23), (50, 1)]
    return [Request(RNG.integers(0, config.vocab_size, n).tolist(), f) for n, f in sizes]


@functools.cache
def full_pass() -> Any:
    return jax.jit(transformer.Model(CONFIG).apply)


def logits_of(model: Scorer, tokens: list[int]) -> np.ndarray:
    """One row of tokens through the whole model, (T, V); what fills it up lies in its future."""
    inputs = np.pad(tokens, (0, 16 - len(tokens)))[None]
    return np.asarray(full_pass()(model.variables, inputs)[0, : len(tokens)], np.float64)


def by_softmax(model: Scorer, request: Request, stride: int) -> tuple[float, bool]:
    """Window by window with no batch and no head in pieces, in float64."""
    total, greedy = 0.0, True
    for start, first, stop in windows(len(request.tokens), request.first, 16, stride):
        logits = logits_of(model, list(request.tokens[start : stop - 1]))
        log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        for t in range(first, stop):
            total += log_p[t - 1 - start, request.tokens[t]]
            greedy &= int(np.argmax(log_p[t - 1 - start])) == request.tokens[t]
    return total, greedy


def test_windows_score_each_token_once_with_the_context_that_the_stride_leaves() -> None:
    for context in (1, 2, 5, 8):
        for stride in range(1, context + 1):
            for first in (1, 2, 4, 7, 11):
                for length in range(first, 30):
                    cut = windows(length, first, context, stride)
                    scored = [t for w in cut for t in range(w.first, w.stop)]
                    assert scored == list(range(first, length))
                    for start, begin, stop in cut:
                        assert 0 <= start < begin and stop - 1 - start <= context
                        # None could read more.
                        assert start == 0 or stop - 1 - start == context
                    for w in cut:
                        for t in range(w.first, w.stop):
                            assert t - w.start >= min(t, context - stride + 1)
                    if length - 1 <= context and length > first:
                        assert cut == [(0, first, length)]


def test_windows_of_the_common_harness() -> None:
    """The example in the documentation of `LM.loglikelihood_rolling`: a prefix and ten tokens."""
    assert windows(11, 1, 4, 4) == [(0, 1, 5), (4, 5, 9), (6, 9, 11)]
    # A continuation that fits is one window; its context loses its beginning.
    assert windows(30, 26, 8, 8) == [(21, 26, 30)]
    assert windows(12, 1, 8, 2) == [(0, 1, 9), (2, 9, 11), (3, 11, 12)]


@pytest.mark.parametrize("stride", [0, -3, 9])
def test_a_stride_outside_of_the_context_is_refused(stride: int) -> None:
    with pytest.raises(
        ValueError, match=f"--stride={stride}: .* nearest: {1 if stride < 1 else 8}"
    ):
        windows(10, 1, 8, stride)
    with pytest.raises(ValueError, match="first=0"):
        windows(10, 0, 8, 4)


@pytest.mark.parametrize("stride", [16, 7])
def test_scores_equal_a_direct_softmax(stride: int) -> None:
    model, asked = scorer(), requests()
    greedy = list(asked[3].tokens[:2])
    for _ in range(4):  # one that greedy decoding gives
        greedy = [*greedy, int(np.argmax(logits_of(model, greedy)[-1]))]
    asked += [Request(greedy, 2), Request([*greedy[:-1], (greedy[-1] + 1) % 48], 2)]
    found = model.score(asked, stride)
    for score, request in zip(found, asked, strict=True):
        total, likeliest = by_softmax(model, request, stride)
        assert score.log_likelihood == pytest.approx(total, rel=1e-5)
        assert score.greedy == likeliest
        assert score.tokens == len(request.tokens) - request.first
    assert [score.greedy for score in found[-2:]] == [True, False]


def test_a_text_that_fits_is_one_full_pass_whatever_the_stride() -> None:
    model = scorer()
    asked = [Request(RNG.integers(0, 48, 17).tolist(), 1)]
    assert model.score(asked, 16) == model.score(asked, 3)


def test_a_smaller_stride_changes_what_long_texts_score() -> None:
    model = scorer()
    long = requests()[-1:]
    assert model.score(long, 16)[0].log_likelihood != model.score(long, 6)[0].log_likelihood


def test_neither_company_nor_pieces_of_the_head_change_a_score(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = requests()
    whole = scorer().score(asked)
    alone = [scorer().score([request])[0] for request in asked[:3]]
    np.testing.assert_allclose([s[0] for s in alone], [s[0] for s in whole[:3]], rtol=1e-6)
    monkeypatch.setattr(likelihood, "PIECE", 4 * 48 * 2)  # two positions at a time
    pieces = scorer(rows=4).score(asked)
    np.testing.assert_allclose([s[0] for s in pieces], [s[0] for s in whole], rtol=1e-6)
    assert [s.greedy for s in pieces] == [s.greedy for s in whole]


def test_the_logits_of_a_batch_never_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "PIECE", 4 * 48 * 8)
    model = scorer(rows=4)
    batch = {n: np.zeros((4, 16), np.int32) for n in ("inputs", "targets", "positions")}
    batch["mask"] = np.ones((4, 16), np.float32)
    program = model._compiled.lower(model.variables, batch).as_text()
    assert "tensor<4x8x48xf32>" in program
    assert "4x16x48" not in program


@pytest.mark.parametrize("name", [name for name in MESHES if name != "one device"])
def test_every_mesh_gives_the_same_scores(name: str) -> None:
    config = MESHES[name][2]
    asked = requests(config)
    alone, found = (scorer(config, mesh=mesh).score(asked, 10) for mesh in ("one device", name))
    np.testing.assert_allclose([s[0] for s in found], [s[0] for s in alone], rtol=1e-5)
    assert [s.greedy for s in found] == [s.greedy for s in alone]


class Pairs(parallel.Layer):
    """p(next | this) from a table: what can be counted on fingers."""

    config: Any
    train: bool = False

    def hidden(self, tokens: Any, positions: Any, segments: Any) -> Any:
        return jax.nn.one_hot(tokens, 3), None, {}

    def head(self, x: jax.Array, weight: Any) -> jax.Array:
        return jnp.log(x @ weight)

    def head_weight(self, like: jax.Array) -> jax.Array:
        return jnp.asarray([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75], [0.4, 0.4, 0.2]])

    def head_positions(self, *arrays: jax.Array) -> tuple[jax.Array, ...]:
        return arrays


def by_hand(tokens: list[int], first: int = 1) -> tuple[float, bool]:
    batch = {
        "inputs": jnp.asarray([tokens[:-1]]),
        "targets": jnp.asarray([tokens[1:]]),
        "positions": jnp.arange(len(tokens) - 1)[None],
        "mask": jnp.asarray([[float(t + 1 >= first) for t in range(len(tokens) - 1)]]),
    }
    loss, misses = likelihood.row_sums(Pairs(SimpleNamespace(vocab_size=3)), {}, batch)
    return -float(loss[0]), not misses[0]


def test_scores_by_hand() -> None:
    found, greedy = by_hand([0, 0, 1, 2])
    assert found == pytest.approx(math.log(0.5 * 0.25 * 0.75), rel=1e-6)
    assert not greedy
    assert by_hand([0, 0, 1, 2], first=3) == (pytest.approx(math.log(0.75), rel=1e-6), True)
    # Of equally likely tokens the first is the greedy one.
    assert by_hand([2, 0]) == (pytest.approx(math.log(0.4), rel=1e-6), True)
    assert by_hand([2, 1]) == (pytest.approx(math.log(0.4), rel=1e-6), False)
