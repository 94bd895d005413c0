"""What is observed is what was computed, and what is patched has the effect it must have."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn import parallel
from nn.analysis import interpret
from nn.analysis.interpret import Patch, observe, where
from tests import parallel_cases as cases

FAMILY = cases.family("transformer")
GPT = dataclasses.replace(FAMILY.tiny(), num_layers=3, init_std=0.3)
LLAMA = dataclasses.replace(cases.llama(GPT), num_layers=3)  # each block under jax.checkpoint
CONFIGS = {"gpt": GPT, "llama": LLAMA}
MODULES = ("blocks", "blocks/attention", "blocks/mlp", "embed")
POSITIONS = 7
EACH = pytest.mark.parametrize("name", CONFIGS)


@functools.cache
def setting(name: str) -> tuple[Any, Any, jax.Array, jax.Array]:
    """(model, variables, tokens, other tokens)."""
    model = FAMILY.Model(CONFIGS[name])
    tokens = jax.random.randint(jax.random.key(1), (2, 2, POSITIONS), 0, GPT.vocab_size)
    params = parallel.unbox(jax.jit(model.init)(jax.random.key(0), tokens[0])["params"])
    return model, {"params": params}, tokens[0], tokens[1]


@functools.cache
def compiled(name: str) -> Any:
    """`observe` with one patch that takes part as its amount says."""
    model, variables, _, _ = setting(name)

    @functools.partial(jax.jit, static_argnums=1)
    def run(tokens: jax.Array, module: str, value: jax.Array, amount: jax.Array) -> Any:
        patches = [Patch(module, value, amount)]
        return observe(model, variables, tokens, modules=MODULES, patches=patches)

    return run


@functools.cache
def clean(name: str) -> tuple[Any, Any]:
    """Of both rows of tokens: (logits, what was left)."""
    model, variables, *rows = setting(name)
    run = jax.jit(lambda tokens: observe(model, variables, tokens, modules=MODULES))
    return run(rows[0]), run(rows[1])


@EACH
def test_a_run_leaves_what_its_modules_did(name: str) -> None:
    model, variables, tokens, _ = setting(name)
    logits, left = clean(name)[0]
    np.testing.assert_allclose(logits, jax.jit(model.apply)(variables, tokens), atol=1e-5)
    attention = left["blocks/attention/attention"]
    assert attention.shape == (3, 2, GPT.num_heads if name == "gpt" else 8, POSITIONS, POSITIONS)
    np.testing.assert_allclose(attention.sum(axis=-1), 1.0, rtol=1e-5)
    assert float(jnp.triu(attention, 1).max()) == 0.0
    residual = left["blocks/residual"]
    np.testing.assert_array_equal(left["blocks/output"], residual)
    before = jnp.concatenate([residual[:1] * 0, residual[:-1]])
    written = left["blocks/attention/output"] + left["blocks/mlp/output"]
    np.testing.assert_allclose((residual - before)[1:], written[1:], atol=1e-4)
    assert left["embed/output"].shape == (2, POSITIONS, GPT.dim)


@EACH
def test_the_lens_at_the_last_layer_is_the_model(name: str) -> None:
    model, variables, _, _ = setting(name)
    logits, left = clean(name)[0]
    lens = jax.jit(lambda x: interpret.logit_lens(model, variables, x))(left["blocks/residual"])
    assert lens.shape == (3, *logits.shape)
    np.testing.assert_allclose(lens[-1], logits, atol=1e-5)
    assert float(jnp.abs(lens[0] - logits).max()) > 0.1


@EACH
def test_parts_of_the_residual_add_up_to_the_logits(name: str) -> None:
    model, variables, _, _ = setting(name)
    logits, left = clean(name)[0]
    writes = jnp.concatenate([left["blocks/attention/output"], left["blocks/mlp/output"]])
    first = left["blocks/residual"][-1] - writes.sum(axis=0)
    parts = jnp.concatenate([first[None], writes])
    direct = jax.jit(lambda x: interpret.direct_logits(model, variables, x))(parts)
    biases = interpret.logits_of(model, variables, jnp.zeros_like(first))
    assert direct.shape == (7, *logits.shape)
    np.testing.assert_allclose(direct.sum(axis=0) + biases, logits, atol=2e-4)


@EACH
def test_patching_the_whole_residual_has_the_full_effect(name: str) -> None:
    """At any layer the logits become those of the other run; at some positions, from there on."""
    run, tokens = compiled(name), setting(name)[2]
    (base, _), (other, left) = clean(name)
    residual = left["blocks/residual"]
    for layer in range(3):
        got, _ = run(tokens, "blocks", residual, where(residual, layer))
        np.testing.assert_allclose(got, other, atol=1e-5)
    got, _ = run(tokens, "blocks", residual, where(residual, 1, 4))
    np.testing.assert_array_equal(got[:, :4], base[:, :4])
    assert (np.abs(np.asarray(got - base)[:, 4:]).max(axis=-1) > 1e-3).all()
    got, _ = run(tokens, "blocks", residual, where(residual, 2, [3, -1]))
    moved = np.abs(np.asarray(got - base)).max(axis=(0, 2)) > 1e-3
    assert moved.tolist() == [False, False, False, True, False, False, True]
    np.testing.assert_allclose(got[:, [3, 6]], other[:, [3, 6]], atol=1e-5)


@EACH
def test_a_patch_is_as_large_as_it_says_and_only_where_it_says(name: str) -> None:
    run, tokens = compiled(name), setting(name)[2]
    (base, old), (_, left) = clean(name)
    value = left["blocks/mlp/output"]
    got, seen = run(tokens, "blocks/mlp", value, 0.0 * where(value))
    np.testing.assert_array_equal(got, base)
    got, seen = run(tokens, "blocks/mlp", value, 0.25 * where(value, 1, 5))
    want = old["blocks/mlp/output"][1].at[:, 5].multiply(0.75).at[:, 5].add(0.25 * value[1, :, 5])
    np.testing.assert_allclose(seen["blocks/mlp/output"][1], want, atol=1e-6)
    for path in ("blocks/attention/output", "blocks/mlp/output"):
        np.testing.assert_array_equal(seen[path][0], old[path][0])
    # A block, which wrappers surround, is patched once.
    value = left["blocks/residual"]
    _, seen = run(tokens, "blocks", value, 0.5 * where(value, 0))
    want = 0.5 * (old["blocks/residual"][0] + value[0])
    np.testing.assert_allclose(seen["blocks/output"][0], want, atol=1e-6)


def test_a_module_outside_of_the_stack_is_patched_too() -> None:
    run, tokens = compiled("gpt"), setting("gpt")[2]
    other, left = clean("gpt")[1]
    got, _ = run(tokens, "embed", left["embed/output"], jnp.ones((1, 1, 1)))
    np.testing.assert_allclose(got, other, atol=1e-5)


def test_a_sweep_is_every_patch_by_itself() -> None:
    model, variables, tokens, _ = setting("gpt")
    value = clean("gpt")[1][1]["blocks/attention/output"]

    def metric(logits: jax.Array) -> jax.Array:
        return logits[:, -1, 3].sum()

    found = jax.jit(
        lambda: interpret.sweep(
            model, variables, tokens, module="blocks/attention", source=value, metric=metric
        )
    )()
    assert found.shape == (3, POSITIONS)
    for layer, position in ((0, 2), (2, 6), (2, 5)):
        amount = where(value, layer, position)
        got, _ = compiled("gpt")(tokens, "blocks/attention", value, amount)
        np.testing.assert_allclose(found[layer, position], metric(got), rtol=1e-5)
    # What the last layer does at an earlier position reaches no later one.
    np.testing.assert_allclose(found[2, :-1], metric(clean("gpt")[0][0]), rtol=1e-6)


def test_a_stripe_is_the_attention_to_one_offset() -> None:
    length = 6
    back = jnp.broadcast_to(jnp.eye(length, k=-2), (1, 2, 1, length, length))
    uniform = jnp.tril(jnp.ones((length, length))) / jnp.arange(1, length + 1)[:, None]
    both = jnp.concatenate([back, jnp.broadcast_to(uniform, back.shape)], axis=2)
    np.testing.assert_allclose(interpret.stripe(both, 2), [[1.0, (1 / 3 + 0.25 + 0.2 + 1 / 6) / 4]])
    assert float(interpret.stripe(both, 1)[0, 0]) == 0.0


def test_what_is_not_there_is_refused() -> None:
    model, variables, tokens, _ = setting("gpt")
    value = clean("gpt")[1][1]["blocks/residual"]
    with pytest.raises(ValueError, match="'blocks/mpl'.*nearest: 'blocks/mlp'"):
        observe(model, variables, tokens, modules=["blocks/mpl"])
    with pytest.raises(ValueError, match="unknown module that runs 'block'"):
        observe(model, variables, tokens, patches=[Patch("block", value, where(value))])
    with pytest.raises(IndexError, match="layer 3: there are 3; nearest: 2"):
        where(value, layer=3)
    with pytest.raises(IndexError, match="position -8: there are 7"):
        where(value, position=-8)
