"""What is particular to encoder-decoders: masks, the cache, the memory, other meshes."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn import parallel
from nn.families import seq2seq_transformer
from nn.families.seq2seq_transformer import PRESETS, Config, Model
from tests import parallel_cases as cases
from tests.marks import but_slow
from tests.test_families import parameter_count

TINY = seq2seq_transformer.tiny()
T5 = dataclasses.replace(
    TINY,
    norm="rms",
    norm_order="pre",
    final_norm=True,
    position="relative",
    relative_buckets=8,
    relative_distance=12,
    bias=False,
    head_dim=6,
    attention_scale=1.0,
    activation="geglu_tanh",
    tie_embeddings=False,
)
BART = dataclasses.replace(
    TINY,
    embed_norm=True,
    position="learned",
    position_offset=2,
    head_bias=True,
    decoder_heads=2,
    decoder_mlp_dim=48,
)
CONFIGS = {"original": TINY, "t5": T5, "bart": BART}


def initial(config: Config) -> Any:
    """Parameters that are far from their symmetric beginning."""
    made = Model(config).init(jax.random.key(0), *seq2seq_transformer.example(config, 2))
    leaves, tree = jax.tree.flatten(parallel.unbox(made)["params"])
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = [0.2 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return {"params": jax.tree.unflatten(tree, [x + n for x, n in zip(leaves, noise, strict=True)])}


def rows(config: Config) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Inputs (3, 10), the last ones of two rows padded; tokens to go on from (3, 9)."""
    keys = jax.random.split(jax.random.key(2))
    inputs = jax.random.randint(keys[0], (3, 10), 0, config.vocab_size)
    known = (jnp.arange(10)[None] < jnp.asarray([[7], [10], [1]])).astype(jnp.int32)
    return inputs, known, jax.random.randint(keys[1], (3, 9), 0, config.vocab_size)


@pytest.mark.parametrize("preset, body", [("base", 44_140_544), ("big", 176_361_472)])
def test_the_original_has_the_size_of_other_implementations(preset: str, body: int) -> None:
    """Theirs are without the table, and have a norm after each stack, which the paper has not."""
    config = dataclasses.replace(PRESETS[f"transformer-{preset}"], final_norm=True)
    table = config.vocab_size * config.dim
    assert parameter_count(seq2seq_transformer, config) - table == body


@pytest.mark.parametrize("name", but_slow(CONFIGS, "original"))
def test_padding_is_not_seen_and_targets_only_backwards(name: str) -> None:
    config = CONFIGS[name]
    apply, params = jax.jit(Model(config).apply), initial(config)
    inputs, known, tokens = rows(config)
    logits = apply(params, inputs, tokens, known)
    changed = (inputs + 1) % config.vocab_size
    other = jnp.where(known > 0, inputs, changed)
    np.testing.assert_array_equal(apply(params, other, tokens, known), logits)
    later = tokens.at[:, 6].set((tokens[:, 6] + 1) % config.vocab_size)
    after = apply(params, inputs, later, known)
    np.testing.assert_array_equal(after[:, :6], logits[:, :6])
    assert (after[:, 6:] != logits[:, 6:]).any(axis=-1).all()
    first = apply(params, inputs.at[:, 0].set(changed[:, 0]), tokens, known)
    assert (first != logits).any(axis=-1).all(), "every position sees the first input"
    alone = apply(params, inputs[2:, :1], tokens[2:, :1])
    np.testing.assert_allclose(alone, logits[2:, :1], atol=1e-5)


@pytest.mark.parametrize("name", but_slow(CONFIGS, "original", "bart"))
def test_cached_decoding_equals_the_full_pass(name: str) -> None:
    """The memory is given once, and its keys and values are recalled."""
    config = CONFIGS[name]
    model, params = Model(config), initial(config)
    inputs, known, tokens = rows(config)
    full = model.apply(params, inputs, tokens, known)
    memory: Any = model.apply(params, inputs, known, method="encode")
    cache = model.empty_cache(3, 9, memory_length=10)
    position = jnp.arange(9)[None] + jnp.zeros_like(tokens)
    given, pieces = {"memory": memory}, []
    for start, end in ((0, 4), (4, 5), (5, 9)):
        hidden, cache, _ = model.apply(
            params,
            tokens[:, start:end],
            position[:, start:end],
            cache=cache,
            memory_segments=known,
            method="hidden",
            **given,
        )
        given = {}
        pieces.append(model.apply(params, hidden, method="head"))
    np.testing.assert_allclose(jnp.concatenate(pieces, axis=1), full, atol=2e-5)


MESHES = {
    "ring": ({"context": 2, "tensor": 2}, {}),
    "gather": ({"context": 4}, {"attention": "gather"}),
    "whole sequences": ({"fsdp": 2, "tensor": 2}, {"sequence_parallel": False}),
    "interleaved": ({"pipe": 2, "data": 2}, {"schedule": "interleaved", "rounds": 2}),
    "vocabulary whole": ({"tensor": 4}, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_other_uses_of_a_mesh_equal_one_device(name: str) -> None:
    sizes, use = MESHES[name]
    config = dataclasses.replace(BART, encoder_layers=4, decoder_layers=4, decoder_heads=0)
    if "vocabulary" in name:  # which the shards do not divide
        config = dataclasses.replace(T5, vocab_size=97, num_heads=4)
    options = {"sequence_parallel": True, "microbatches": 2} | use
    got = cases.measure("seq2seq_transformer", config, sizes, parallel.Rules(**options))
    want = cases.measure("seq2seq_transformer", config, {})
    assert got.means == pytest.approx(want.means, rel=1e-5)
    error, where = cases.worst(got.gradients, want.gradients)
    assert error < 1e-5, where


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 5}, "model.num_heads=5 does not divide model.dim=32; nearest that does: 4"),
        ({"decoder_heads": 3}, "model.decoder_heads=3 does not divide model.dim=32"),
        ({"output_dropout": 1.0}, "model.output_dropout=1.0: must be in"),
        ({"relative_buckets": 6}, "model.relative_buckets=6: .* nearest: 8"),
        ({"relative_distance": 16}, "model.relative_distance=16: .* nearest: 17"),
        ({"start_token": 96}, "model.start_token=96: must be in 0 to 95; nearest: 95"),
        ({"position": "rotary"}, "unknown model.position 'rotary'"),
        ({"decoder_layers": 0}, "model.decoder_layers=0: must be at least 1"),
    ],
)
def test_configs_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)
