"""What is particular to Whisper: sound as an input, fixed positions, where things lie on a mesh."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from nn import parallel
from nn.families import whisper
from nn.layers.position import sinusoids
from nn.layers.spectrogram import log_mel
from nn.parallel import sequence

CONFIG = dataclasses.replace(whisper.tiny(), encoder_layers=1, decoder_layers=1, audio_context=16)


@pytest.fixture(scope="module")
def params() -> Any:
    made = whisper.Model(CONFIG).init(jax.random.key(0), *whisper.example(CONFIG, 2))
    return parallel.unbox(made)["params"]


def encode(params: Any, inputs: jax.Array) -> jax.Array:
    found: Any = whisper.Model(CONFIG).apply({"params": params}, inputs, method="encode")
    return found


def sound() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, 32 * 160)), jnp.float32)


def test_sound_is_heard_as_its_spectrogram(params: Any) -> None:
    frames = log_mel(sound(), CONFIG.num_mels)
    assert frames.shape == (2, 32, 10)
    memory = encode(params, sound())
    assert memory.shape == (2, 16, 32)
    np.testing.assert_allclose(memory, encode(params, frames), atol=1e-6)


@pytest.mark.parametrize("attention", ["ring", "ulysses"])
def test_shards_of_context_hear_all_of_the_sound(params: Any, attention: str) -> None:
    mesh = parallel.make_mesh({"context": 4}, jax.devices()[:4])
    rules = parallel.Rules(attention=attention)
    split, whole = P(None, "context"), jax.tree.map(lambda _: P(), params)
    run = jax.jit(parallel.spmd(encode, mesh, rules, (whole, split), split))
    heard = np.asarray(sound())[:, sequence.order(32 * 160, 4, rules.layout)]
    places = sequence.order(16, 4, rules.layout)
    expected = np.asarray(encode(params, sound()))[:, places]
    np.testing.assert_allclose(run(params, jnp.asarray(heard)), expected, atol=1e-5)


def test_positions_that_do_not_divide_are_refused(params: Any) -> None:
    mesh = parallel.make_mesh({"context": 4}, jax.devices()[:4])
    split, whole = P(None, "context"), jax.tree.map(lambda _: P(), params)
    run = jax.jit(parallel.spmd(encode, mesh, parallel.Rules(), (whole, split), split))
    with pytest.raises(ValueError, match=r"12 positions cannot be cut into the 8 parts"):
        run(params, jnp.zeros((2, 24, CONFIG.num_mels)))


def test_the_slowest_wave_of_the_positions_turns_once_in_20000_pi() -> None:
    fixed = sinusoids(jnp.asarray([[0, 1, 700]]), 6, endpoint=True)[0]
    angles = np.asarray([0, 1, 700])[:, None] * 10000.0 ** -np.asarray([0, 0.5, 1])
    np.testing.assert_allclose(fixed, np.hstack([np.sin(angles), np.cos(angles)]), atol=1e-4)


def test_keys_have_no_bias(params: Any) -> None:
    blocks = params["decoder"]["blocks"]
    for name in ("attention", "cross"):
        assert "query_bias" in blocks[name] and "key_bias" not in blocks[name]


@pytest.mark.parametrize(
    "shape, message",
    [
        ((1, 32, 9), r"model.num_mels=10: inputs must be frames .* got shape \(1, 32, 9\)"),
        ((1, 34, 10), r"34 frames, but model.audio_context=16 has room for 32"),
        ((1, 34 * 160), r"34 frames, but model.audio_context=16 has room for 32"),
    ],
)
def test_sound_that_does_not_suit_is_refused(params: Any, shape: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode(params, jnp.zeros(shape))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"dim": 33}, r"model.dim=33: must be even, from 4 on; nearest: 34"),
        ({"num_heads": 3}, r"model.num_heads=3 does not divide model.dim=32; .*: [24]"),
        ({"decoder_heads": 5}, r"model.decoder_heads=5 does not divide"),
        ({"audio_context": 0}, r"model.audio_context=0: must be at least 1"),
        ({"dropout": 1.0}, r"model.dropout=1.0: must be in \[0, 1\)"),
    ],
)
def test_configs_that_cannot_be_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_cached_decoding_equals_the_full_forward(params: Any) -> None:
    model, tokens = whisper.Model(CONFIG), jnp.asarray([[5, 1, 9, 9, 2], [3, 3, 0, 7, 8]])
    memory, variables = encode(params, sound()), {"params": params}
    full: Any = model.apply(variables, tokens, memory=memory, method="hidden")
    cache: Any = model.empty_cache(2, 5, memory_length=16)
    first: dict[str, Any] = {"memory": memory}
    for place in range(5):
        at = jnp.full((2, 1), place)
        given = (tokens[:, place : place + 1], at)
        states, cache, _ = model.apply(variables, *given, cache=cache, method="hidden", **first)
        np.testing.assert_allclose(states[:, 0], full[0][:, place], atol=1e-5)
        first = {}  # the cache has it
