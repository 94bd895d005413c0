"""What is particular to the decoder: depth by scan, recomputation, packing, the cache."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn import parallel
from nn.families import transformer
from nn.families.transformer import Config, Model
from tests.marks import but_slow

TINY = transformer.tiny()
LLAMA = dataclasses.replace(
    TINY, norm="rms", position="rotary", activation="swiglu", num_kv_heads=2, bias=False
)
CONFIGS = {
    "gpt": TINY,
    "llama": LLAMA,
    "alibi": dataclasses.replace(TINY, position="alibi", num_kv_heads=1),
    "window": dataclasses.replace(LLAMA, windows=(5,)),
    "window in turn": dataclasses.replace(LLAMA, windows=(5, 0), rope_local_theta=50.0),
    "gpt-j": dataclasses.replace(
        TINY,
        parallel="one_norm",
        position="rotary",
        rope_dim=4,
        rope_interleaved=True,
        unbiased=("query", "key", "value"),
        tie_embeddings=False,
        head_bias=True,
    ),
    "gemma": dataclasses.replace(
        LLAMA,
        norm="rms_one",
        norm_order="sandwich",
        qk_norm="head",
        attention_cap=2.0,
        attention_scale=0.5,
        logit_cap=1.5,
        embed_scale=3.0,
        windows=(3,),
    ),
    "olmo": dataclasses.replace(LLAMA, norm_order="output", qk_norm="row", head_dim=6),
    "opt": dataclasses.replace(
        TINY, norm_order="post", final_norm=False, position_offset=2, embed_dim=20
    ),
    "sinusoids": dataclasses.replace(TINY, position="sinusoidal"),
    "experts": dataclasses.replace(LLAMA, num_experts=4, expert_dim=24, shared_experts=1),
}


def initial(config: Config, tokens: Any) -> Any:
    return parallel.unbox(Model(config).init(jax.random.key(0), tokens))["params"]


@pytest.mark.parametrize(
    "field",
    [
        pytest.param({"scan_unroll": 0}, marks=pytest.mark.slow),
        {"remat": "block"},
        pytest.param({"remat": "dots"}, marks=pytest.mark.slow),
    ],
)
def test_unrolling_and_recomputation_change_nothing(field: dict[str, Any]) -> None:
    (tokens,) = transformer.example(TINY, 2)
    params = initial(TINY, tokens)

    def gradient(config: Config) -> Any:
        def loss(p: Any) -> jax.Array:
            return jnp.mean(jnp.square(Model(config).apply({"params": p}, tokens)))

        return jax.jit(jax.grad(loss))(params)

    plain, other = gradient(TINY), gradient(dataclasses.replace(TINY, **field))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("name", but_slow(CONFIGS, "experts", "gpt-j", "olmo"))
def test_cached_decoding_equals_the_full_pass(name: str) -> None:
    config = CONFIGS[name]
    tokens = jax.random.randint(jax.random.key(1), (3, 12), 0, config.vocab_size)
    model, params = Model(config), initial(config, tokens)
    full = model.apply({"params": params}, tokens)
    cache = model.empty_cache(3, 12)
    position = jnp.arange(12)[None] + jnp.zeros_like(tokens)
    pieces = []
    for start, end in ((0, 5), (5, 6), (6, 7), (7, 12)):
        hidden, cache, _ = model.apply(
            {"params": params},
            tokens[:, start:end],
            position[:, start:end],
            cache=cache,
            method="hidden",
        )
        pieces.append(model.apply({"params": params}, hidden, method="head"))
    np.testing.assert_allclose(jnp.concatenate(pieces, axis=1), full, atol=2e-6)


@pytest.mark.parametrize("name", but_slow(("window", "gemma"), "window"))
def test_a_window_keeps_no_more_than_it_needs(name: str) -> None:
    """Two tokens at a time, after prompts of 1, 4 and 9 tokens that are padded to 9."""
    config = CONFIGS[name]
    tokens = jax.random.randint(jax.random.key(1), (3, 15), 0, config.vocab_size)
    model, params = Model(config), {"params": initial(config, tokens)}
    full = model.apply(params, tokens)
    cache = model.empty_cache(3, 15, ahead=2)
    assert cache.key.shape[3] == config.windows[0] + 1
    lengths = jnp.asarray([1, 4, 9])
    columns = jnp.arange(9)[None] + jnp.zeros((3, 1), jnp.int32)
    known = (columns < lengths[:, None]).astype(jnp.int32)
    step = lambda *args, cache: model.apply(params, *args, cache=cache, method="hidden")  # noqa: E731
    hidden, cache, _ = step(tokens[:, :9], columns, known, cache=cache)
    logits = model.apply(params, hidden, method="head")
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(logits[row, :length], full[row, :length], atol=2e-6)
    for start in range(0, 6, 2):
        at = lengths[:, None] + jnp.arange(start, start + 2)[None]
        hidden, cache, _ = step(jnp.take_along_axis(tokens, at, 1), at, cache=cache)
        logits = model.apply(params, hidden, method="head")
        wanted = jnp.take_along_axis(full, at[..., None], 1)
        np.testing.assert_allclose(logits, wanted, atol=2e-6)


@pytest.mark.parametrize("name", but_slow(CONFIGS, "gpt", "experts"))
def test_packed_documents_do_not_see_each_other(name: str) -> None:
    config = CONFIGS[name]
    tokens = jax.random.randint(jax.random.key(1), (1, 12), 0, config.vocab_size)
    params = {"params": initial(config, tokens)}
    model = Model(config)
    segments = jnp.asarray([[1] * 5 + [2] * 7])
    positions = jnp.asarray([[*range(5), *range(7)]])
    packed = model.apply(params, tokens, positions_BT=positions, segments_BT=segments)
    alone = jnp.concatenate(
        [model.apply(params, tokens[:, :5]), model.apply(params, tokens[:, 5:])], axis=1
    )
    np.testing.assert_allclose(packed, alone, atol=2e-6)


def test_initial_loss_is_that_of_a_uniform_guess() -> None:
    (tokens,) = transformer.example(TINY, 4)
    logits = Model(TINY).apply({"params": initial(TINY, tokens)}, tokens)
    log_probability = jax.nn.log_softmax(logits)
    assert abs(-float(log_probability.mean()) - np.log(TINY.vocab_size)) < 0.05


def test_intermediates_are_sown_for_every_layer() -> None:
    (tokens,) = transformer.example(TINY, 2)
    params = initial(TINY, tokens)
    _, extra = Model(TINY).apply({"params": params}, tokens, mutable=["intermediates"])
    blocks = extra["intermediates"]["blocks"]
    weights = blocks["attention"]["attention"][0]
    length = tokens.shape[1]
    assert weights.shape == (TINY.num_layers, 2, TINY.num_heads, length, length)
    np.testing.assert_allclose(weights.sum(axis=-1), 1.0, rtol=1e-5)
    assert blocks["residual"][0].shape == (TINY.num_layers, 2, length, TINY.dim)


@pytest.mark.parametrize(
    "field, words",
    [
        ({"num_heads": 5}, "model.num_heads=5 does not divide model.dim=32; nearest that does: 4"),
        ({"num_kv_heads": 3}, "num_kv_heads=3 does not divide .* nearest that does: 2"),
        ({"dropout": 1.5}, "must be in"),
        ({"position": "rotery"}, "nearest: 'rotary'"),
        ({"remat": "blok"}, "nearest: 'block'"),
        ({"activation": "swigloo"}, "nearest: 'swiglu'"),
        ({"num_layers": 0}, "must be at least 1"),
    ],
)
def test_bad_configs_are_refused(field: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(TINY, **field)


@pytest.mark.slow
def test_compile_time_does_not_grow_with_depth() -> None:
    import time

    def seconds(layers: int) -> float:
        config = dataclasses.replace(TINY, num_layers=layers)
        (tokens,) = transformer.example(config, 2)
        params = initial(config, tokens)

        def loss(p: Any) -> jax.Array:
            return jnp.mean(jnp.square(Model(config).apply({"params": p}, tokens)))

        start = time.process_time()
        jax.jit(jax.grad(loss)).lower(params).compile()
        return time.process_time() - start

    seconds(2)
    ratios = []
    for _ in range(3):
        shallow, deep = seconds(2), seconds(32)
        ratios.append(deep / shallow)
    assert sorted(ratios)[1] < 1.3
