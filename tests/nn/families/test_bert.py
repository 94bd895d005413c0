"""What encoders have that other families have not: heads, padding, pools; on meshes too."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from launch.run.state import initial_state
from launch.run.step import to_mesh
from nn import parallel
from nn.families import bert
from nn.learning import backprop
from nn.learning.task import Task
from tests import parallel_cases as cases

KEY = jax.random.key(0)
TINY = dataclasses.replace(bert.tiny(), num_layers=2)
MODERN = dataclasses.replace(
    TINY,
    num_layers=4,
    token_types=0,
    activation="geglu",
    norm_order="pre",
    norm_bias=False,
    bias=False,
    position="rotary",
    rope_local_theta=100.0,
    windows=(0, 4, 4),
    head_bias=False,
    pool_norm=True,
    pad_token=0,
    dropout=0.1,
)
ROBERTA = dataclasses.replace(
    TINY, token_types=1, pad_token=1, position_offset=2, skip_padding=True, dropout=0.1
)


def made(config: bert.Config) -> tuple[bert.Model, Any]:
    """A model and parameters in which nothing is 0 or 1."""
    model = bert.Model(config)
    params = parallel.unbox(jax.jit(model.init)(KEY, *bert.example(config, 2)))["params"]
    keys = iter(jax.random.split(KEY, len(jax.tree.leaves(params))))
    noisy = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(next(keys), x.shape), params)
    return model, {"params": noisy}


def tokens_of(rows: int, length: int = 12) -> np.ndarray:
    return np.random.default_rng(0).integers(2, 96, (rows, length)).astype(np.int32)


@pytest.mark.parametrize(("config", "pool"), [(ROBERTA, "first"), (MODERN, "mean")])
def test_padding_changes_nothing(config: bert.Config, pool: str) -> None:
    """Neither behind the tokens nor, where it is not counted, before them."""
    config = dataclasses.replace(config, dropout=0.0)
    model, variables = made(config)
    apply = jax.jit(model.apply)
    tokens, pad = tokens_of(3), np.full((3, 4), config.pad_token, np.int32)
    behind = np.concatenate([tokens, pad], axis=1)
    alone = apply(variables, tokens)
    np.testing.assert_allclose(apply(variables, behind)[:, :12], alone, atol=2e-5)
    if config.skip_padding:
        before = np.concatenate([pad, tokens], axis=1)
        np.testing.assert_allclose(apply(variables, before)[:, 4:], alone, atol=2e-5)
    model, variables = made(dataclasses.replace(config, head="class", num_classes=3, pool=pool))
    apply = jax.jit(model.apply)
    np.testing.assert_allclose(apply(variables, behind), apply(variables, tokens), atol=2e-5)
    first = np.where(np.arange(12) < 1, tokens, config.pad_token)
    one = apply(variables, tokens[:, :1])  # a single token
    np.testing.assert_allclose(apply(variables, first), one, atol=2e-5)


def test_positions_and_documents() -> None:
    """Two documents in a row are what each is alone."""
    model, variables = made(TINY)
    apply = jax.jit(model.apply)
    tokens, lengths = tokens_of(2), (5, 7)
    positions = np.concatenate([np.arange(n) for n in lengths])[None] + np.zeros_like(tokens)
    segments = np.repeat([1, 2], lengths)[None] + np.zeros_like(tokens)
    together = apply(variables, tokens, positions, segments)
    for part, piece in ((slice(0, 5), tokens[:, :5]), (slice(5, 12), tokens[:, 5:])):
        np.testing.assert_allclose(together[:, part], apply(variables, piece), atol=2e-5)


def test_windows_are_on_both_sides_and_the_first_layer_sees_all() -> None:
    config = dataclasses.replace(MODERN, dropout=0.0, head="none", pad_token=-1)
    local = dataclasses.replace(config, windows=(4,), num_layers=1)
    tokens = tokens_of(1)
    changed = tokens.copy()
    changed[0, 6] = 1
    for which, reach in ((local, 3), (config, 12)):
        model, variables = made(which)
        apply = jax.jit(model.apply)
        moved = apply(variables, tokens) != apply(variables, changed)
        columns = np.flatnonzero(np.asarray(moved).any(axis=(0, 2)))
        np.testing.assert_array_equal(columns, np.arange(max(0, 6 - reach), min(12, 6 + reach + 1)))


def test_kinds_of_tokens() -> None:
    model, variables = made(TINY)
    apply, tokens = jax.jit(model.apply), tokens_of(2)
    plain = apply(variables, tokens)
    zeros = apply(variables, tokens, types_BT=jnp.zeros_like(tokens))
    np.testing.assert_array_equal(plain, zeros)
    assert (apply(variables, tokens, types_BT=jnp.ones_like(tokens)) != plain).all()


@pytest.mark.parametrize(
    ("preset", "count"), [("bert-base", 109_482_240), ("bert-large", 335_141_888)]
)
def test_the_body_has_the_published_size(preset: str, count: int) -> None:
    config = dataclasses.replace(bert.PRESETS[preset], head="pooled")
    model = bert.Model(config)
    shapes = jax.eval_shape(lambda: model.init(KEY, *bert.example(config, 1)))["params"]
    assert sum(x.size for x in jax.tree.leaves(parallel.unbox(shapes))) == count


def test_shapes_of_what_heads_give() -> None:
    tokens = tokens_of(3)
    for head, shape in (
        ("none", (3, 12, 32)),
        ("pooled", (3, 32)),
        ("class", (3, 5)),
        ("masked_token", (3, 12, 96)),
        ("replaced_token", (3, 12)),
    ):
        model = bert.Model(dataclasses.replace(TINY, embed_dim=24, head=head, num_classes=5))
        assert jax.eval_shape(model.init_with_output, KEY, tokens)[0].shape == shape
    model = bert.Model(dataclasses.replace(TINY, head="masked_token_and_next_sentence"))
    both = jax.eval_shape(model.init_with_output, KEY, tokens)[0]
    assert [x.shape for x in both] == [(3, 12, 96), (3, 2)]


def gradients(name: str, config: bert.Config, sizes: dict[str, int], **use: Any) -> Any:
    """Means and gradients of one step."""
    objective = importlib.import_module(f"nn.objectives.{name}")
    if name == "classify":
        batch = {
            "inputs": np.where(np.arange(16) < 11, tokens_of(16, 16), max(config.pad_token, 0)),
            "labels": np.arange(16, dtype=np.int32) % config.num_classes,
            "mask": (np.arange(16) % 5 > 0).astype(np.float32),
        }
    else:
        batch = importlib.import_module(f"tests.batches.{name}").batch(bert, config, 16)
    rules = parallel.Rules(sequence_parallel=True, microbatches=2, **use)
    count = int(np.prod(list(sizes.values()))) if sizes else 1
    mesh = parallel.make_mesh(sizes, jax.devices()[:count])
    task = Task(
        bert.Model(config),
        bert.example(config, 2),
        objective,
        objective.Config(),
        optax.sgd(0.1),
        mesh,
        rules,
    )
    rule = backprop.Rule(backprop.Config(), task)
    found, sums, _ = jax.jit(rule.gradients)(initial_state(rule, 0), to_mesh(rule, batch))
    means = {key: float(total / count) for key, (total, count) in sums.items()}
    return means, jax.device_get(found)


ELECTRA = dataclasses.replace(TINY, embed_dim=16, head="replaced_token", dropout=0.1)
PAIRS = dataclasses.replace(TINY, head="masked_token_and_next_sentence", attention_dropout=0.1)
CLASSES = dataclasses.replace(MODERN, head="class", num_classes=5, pool="mean")
FIRST = dataclasses.replace(ROBERTA, head="class", num_classes=5)
ALL = {"fsdp": 2, "context": 2, "tensor": 2}
PIPED = {"pipe": 2, "context": 2, "tensor": 2}


@pytest.mark.parametrize(
    ("name", "config", "sizes", "use"),
    [
        ("masked_token", MODERN, ALL, {}),
        ("masked_token", PAIRS, PIPED, {}),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("masked_token", ROBERTA, {"pipe": 2, "context": 2}, {"schedule": "1f1b"}),
                ("replaced_token", ELECTRA, PIPED, {}),
                ("classify", CLASSES, PIPED, {}),
                ("masked_token", MODERN, PIPED, {}),
                ("masked_token", MODERN, {"context": 4}, {"attention": "ulysses"}),
                ("masked_token", MODERN, {"context": 4}, {"attention": "gather"}),
                ("masked_token", PAIRS, ALL, {}),
                ("masked_token", ROBERTA, ALL, {}),
                ("replaced_token", ELECTRA, ALL, {}),
                ("replaced_token", ELECTRA, {"expert": 2, "tensor": 4}, {}),
                ("classify", CLASSES, ALL, {}),
                ("classify", FIRST, PIPED, {}),
                ("classify", FIRST, ALL, {}),
            )
        ),
    ],
)
def test_heads_on_meshes(
    name: str, config: bert.Config, sizes: dict[str, int], use: dict[str, Any]
) -> None:
    means, found = gradients(name, config, sizes, **use)
    expected_means, expected = gradients(name, config, {})
    assert means == pytest.approx(expected_means, rel=1e-5, abs=1e-7)
    error, where = cases.worst(found, expected)
    assert error <= 1e-5, f"{where}: relative error {error:.1e}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 5}, "num_heads=5 does not divide model.dim=32; nearest that does: 4"),
        ({"head": "masked"}, "unknown model.head 'masked': .*; nearest: 'masked_token'"),
        ({"norm_order": "sandwich"}, "unknown model.norm_order 'sandwich': choose from post, pre"),
        ({"position": "sinusoidal"}, "unknown model.position 'sinusoidal': choose from learned"),
        ({"pool": "last"}, "unknown model.pool 'last': choose from first, mean"),
        ({"pool_activation": "geglu"}, "pool_activation='geglu': must not be gated"),
        ({"skip_padding": True}, "position_offset=0 leaves none; nearest: 1"),
        ({"windows": ()}, r"model.windows=\(\): one or more sizes"),
        ({"dropout": 1.0}, r"model.dropout=1.0: must be in \[0, 1\)"),
        ({"head": "class", "num_classes": 1}, "num_classes=1: must be at least 2"),
        ({"dim": 0}, "model.dim=0: must be at least 1"),
    ],
)
def test_wrong_configs(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)
