"""What is the two towers' own: where texts are read, attention pooling, zero-shot classes."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn.families import clip
from nn.parallel import Rules, unbox
from tests import parallel_cases as cases

TINY = dataclasses.replace(clip.tiny(), image_layers=2, text_layers=2, context_length=11)
SIGLIP = dataclasses.replace(TINY, kind="siglip", embed_dim=TINY.image_dim, norm_eps=1e-6)
END = 7


def made(config: clip.Config) -> tuple[clip.Model, Any, jax.Array]:
    """A model, variables that are all different from 0 and 1, and images."""
    model, inputs = clip.Model(config), clip.example(config, 3)
    params = unbox(jax.jit(model.init)(jax.random.key(0), *inputs))["params"]
    rng = np.random.default_rng(0)
    noisy = jax.tree.map(lambda x: x + rng.normal(0, 0.2, x.shape), params)
    return model, {"params": noisy}, inputs[0]


def texts(model: clip.Model, variables: Any, tokens: Any) -> np.ndarray:
    encode = jax.jit(lambda v, t: model.apply(v, t, method="encode_text"))
    return np.asarray(encode(variables, jnp.asarray(tokens)))


def test_a_text_is_read_at_its_first_end() -> None:
    model, variables, _ = made(dataclasses.replace(TINY, end_token=END))
    tokens = np.array([[9, 20, 8, END, 3, 30, END, 11, 12, 13, 14]])
    want = texts(model, variables, tokens)
    for place, changes in ((2, True), (3, True), (4, False), (10, False)):
        changed = tokens.copy()
        changed[0, place] = 25
        difference = np.abs(texts(model, variables, changed) - want).max()
        assert (difference > 1e-4) == changes, place
    # What follows the end may be left out.
    np.testing.assert_allclose(texts(model, variables, tokens[:, :4]), want, rtol=1e-5, atol=1e-5)


def test_without_an_end_token_the_highest_one_ends_a_text() -> None:
    legacy, variables, _ = made(TINY)
    assert TINY.end_token == -1
    tokens = np.array([[9, 20, 39, 4, 3, 30, 6, 11, 12, 13, 14]])
    by_name = clip.Model(dataclasses.replace(TINY, end_token=39))
    np.testing.assert_array_equal(
        texts(legacy, variables, tokens), texts(by_name, variables, tokens)
    )


def test_siglip_looks_both_ways_and_reads_the_last_place() -> None:
    model, variables, _ = made(SIGLIP)
    tokens = np.arange(11)[None] + 5
    want = texts(model, variables, tokens)
    for place in (0, 5, 10):
        changed = tokens.copy()
        changed[0, place] = 25
        assert np.abs(texts(model, variables, changed) - want).max() > 1e-4, place


def test_attention_pooling_is_attention() -> None:
    """Against the formula, with all heads written out."""
    model, variables, images = made(SIGLIP)
    found, sown = model.apply(variables, images, method="encode_image", mutable=["intermediates"])
    x = np.asarray(sown["intermediates"]["image_states"][0], np.float64)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"]["image_pool"])
    q = np.einsum("d,dhk->hk", p["probe"], p["query_kernel"]) + p["query_bias"]
    k, v = (
        np.einsum("btd,dhk->bthk", x, p[f"{n}_kernel"]) + p[f"{n}_bias"] for n in ("key", "value")
    )
    scores = np.einsum("hk,bthk->bht", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    y = np.einsum("bht,bthk,hkd->bd", weights, v, p["out_kernel"]) + p["out_bias"]
    h = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
    h = (h * p["norm"]["scale"] + p["norm"]["bias"]) @ p["up"]["kernel"] + p["up"]["bias"]
    h = np.asarray(jax.nn.silu(1.702 * h) / 1.702)  # x sigmoid(1.702 x)
    want = y + h @ p["down"]["kernel"] + p["down"]["bias"]
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


def test_zero_shot_finds_the_class_of_the_nearest_text() -> None:
    model, variables, images = made(dataclasses.replace(TINY, end_token=END))
    tokens = np.random.default_rng(0).integers(8, 40, (4, 2, 11))
    tokens[..., -1] = END
    logits = np.asarray(clip.zero_shot(model, variables, images, jnp.asarray(tokens)))
    assert logits.shape == (3, 4)
    image, text, scale, _ = model.apply(
        variables, images, jnp.asarray(tokens.reshape(8, 11)), method="features"
    )
    mean = np.asarray(text).reshape(4, 2, -1).mean(1)
    mean /= np.linalg.norm(mean, axis=-1, keepdims=True)
    np.testing.assert_allclose(logits, float(scale[0, 0]) * image @ mean.T, rtol=1e-4, atol=1e-4)
    # With one text per class it is the model itself.
    one = clip.zero_shot(model, variables, images, jnp.asarray(tokens[:, :1]))
    plain = model.apply(variables, images, jnp.asarray(tokens[:, 0]))
    np.testing.assert_allclose(one, plain, rtol=1e-4, atol=1e-4)


def settled(gradients: Any) -> Any:
    """Without those that are zero but for rounding: of key biases, and of the bias of logits, which
    a softmax does not see."""
    silent = ("key_bias", "logit_bias")
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x * (not any(n in jax.tree_util.keystr(path) for n in silent)), gradients
    )


@pytest.mark.parametrize(
    ("mesh", "rules"),
    [
        ({"pipe": 2, "context": 2, "tensor": 2}, {"microbatches": 2}),
        ({"fsdp": 2, "context": 4}, {"attention": "ulysses"}),
    ],
    ids=str,
)
@pytest.mark.slow
def test_siglip_on_meshes(mesh: dict[str, int], rules: dict[str, Any]) -> None:
    want = cases.measure("clip", SIGLIP, {})
    got = cases.measure("clip", SIGLIP, mesh, Rules(sequence_parallel=True, **rules))
    assert got.loss == pytest.approx(want.loss, rel=1e-5)
    error, where = cases.worst(*map(settled, (got.gradients, want.gradients)))
    assert error <= 1e-5, where


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "blip"}, "unknown model.kind 'blip'"),
        ({"text_heads": 5}, "text_heads=5 does not divide model.text_dim=24; nearest that does: 4"),
        ({"kind": "siglip"}, "embed_dim=16: .* nearest: 32, which is model.image_dim"),
        ({"vocab_size": 0}, "vocab_size=0: must be at least 1"),
    ],
    ids=str,
)
def test_wrong_configs_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)


def test_longer_texts_are_refused() -> None:
    model, variables, _ = made(TINY)
    with pytest.raises(ValueError, match="12 tokens are longer than model.context_length=11"):
        texts(model, variables, np.zeros((1, 12), np.int32))
