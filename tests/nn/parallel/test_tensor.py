"""Sizes that the tensor axis does not divide, and channels that it does."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest

from launch.run import decode
from launch.run.decode import Sampling
from launch.run.state import initial_state
from nn import parallel
from nn.families import transformer
from nn.objectives import next_token
from tests import parallel_cases as cases
from tests.marks import but_slow

TOLERANCE = 1e-5
TINY = transformer.tiny()
ROTARY = dataclasses.replace(TINY, position="rotary", norm="rms", activation="swiglu")
CONFIGS = {
    "2 of 8 heads": dataclasses.replace(ROTARY, num_heads=8, num_kv_heads=2, tie_embeddings=False),
    # A shard's 3 queries look at one head or at two.
    "3 of 12 heads": dataclasses.replace(ROTARY, dim=48, num_heads=12, num_kv_heads=3),
    "97 tokens": dataclasses.replace(TINY, vocab_size=97, num_heads=8),
    "97 tokens, untied": dataclasses.replace(
        ROTARY, vocab_size=97, num_heads=8, num_kv_heads=2, tie_embeddings=False
    ),
}
slow = pytest.mark.slow
CASES = [
    ("2 of 8 heads", {"tensor": 4}, True, 1),
    ("2 of 8 heads", {"tensor": 8}, False, 1),
    ("97 tokens", {"tensor": 8}, True, 2),
    pytest.param("3 of 12 heads", {"tensor": 4}, True, 1, marks=slow),
    pytest.param("97 tokens, untied", {"fsdp": 2, "tensor": 4}, False, 4, marks=slow),
    pytest.param("2 of 8 heads", {"tensor": 4}, False, 1, marks=slow),
    pytest.param("2 of 8 heads", {"tensor": 8}, True, 1, marks=slow),
    pytest.param("3 of 12 heads", {"tensor": 4}, False, 1, marks=slow),
    pytest.param("3 of 12 heads", {"fsdp": 2, "tensor": 2}, True, 1, marks=slow),
    *(
        pytest.param(name, {"tensor": size}, sequence, chunks, marks=slow)
        for name in ("97 tokens", "97 tokens, untied")
        for size in (2, 4, 8)
        for sequence, chunks in ((True, 1), (False, 2))
    ),
]


def measured(
    name: str, sizes: dict[str, int], sequence: bool, chunks: int, monkeypatch: Any
) -> cases.Result:
    """`cases.measure` of a decoder whose loss is taken over chunks of positions."""
    options = functools.partial(next_token.Config, chunks=chunks)
    monkeypatch.setattr(next_token, "Config", options)
    return cases.measure(
        "transformer", CONFIGS[name], sizes, parallel.Rules(sequence_parallel=sequence)
    )


@functools.cache
def one_device(name: str) -> cases.Result:
    return cases.measure("transformer", CONFIGS[name], {})


@pytest.mark.parametrize(("name", "sizes", "sequence", "chunks"), CASES)
def test_what_does_not_divide(
    name: str,
    sizes: dict[str, int],
    sequence: bool,
    chunks: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reference = one_device(name)
    result = measured(name, sizes, sequence, chunks, monkeypatch)
    cases.assert_same(result, reference)


@pytest.mark.parametrize("name", but_slow(("2 of 8 heads", "97 tokens, untied"), "2 of 8 heads"))
def test_generation_on_a_mesh_is_that_of_one_device(name: str) -> None:
    """With a cache of which every shard keeps the heads that its queries look at."""
    prompts, lengths = np.zeros((2, 5), np.int32), np.asarray([5, 2], np.int32)
    prompts[0], prompts[1, :2] = [3, 1, 4, 1, 5], [9, 2]
    rows = np.arange(2, dtype=np.int32)
    key = jax.random.key_data(jax.random.key(4))
    made = []
    for sizes in ({}, {"tensor": 8}):
        rule = cases.make_rule("transformer", CONFIGS[name], sizes, parallel.Rules())
        task = rule.task
        specs = task.variable_specs()["params"]
        loop = decode.compiled(task.model, task.mesh, task.rules, specs, 8, Sampling())
        params = initial_state(rule, 0).params
        # So large that what attention finds decides what is drawn.
        params = jax.tree.map(lambda x: 10 * x if x.ndim >= 2 else x, params)
        made.append(jax.device_get(loop(params, prompts, lengths, key, rows)))
    for ours, theirs in zip(*made, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert len(np.unique(made[0][0])) > 8


CHANNELS = {
    "resnet": dataclasses.replace(cases.family("resnet").tiny(), width=16),
    "mlp": dataclasses.replace(cases.family("mlp").tiny(), norm="layer"),
}


@functools.cache
def channels(name: str) -> cases.Result:
    return cases.measure(name, CHANNELS[name], {})


@pytest.mark.parametrize(
    "sizes", [pytest.param({"tensor": 8}, marks=pytest.mark.slow), {"fsdp": 2, "tensor": 4}]
)
@pytest.mark.parametrize("name", CHANNELS)
def test_channels_are_split(name: str, sizes: dict[str, int]) -> None:
    reference, result = channels(name), cases.measure(name, CHANNELS[name], sizes)
    cases.assert_same(result, reference)
