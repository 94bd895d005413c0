"""Meshes: the mesh of ones, variants of a family, accumulation, dropout, what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn import parallel
from tests import parallel_cases as cases
from tests.marks import but_slow

TOLERANCE = 1e-5


@pytest.mark.parametrize(
    "name", but_slow(cases.family_names(), "clip", "seq2seq_transformer", "whisper")
)
def test_the_mesh_of_ones_is_bitwise_the_plain_program(name: str) -> None:
    config = cases.family(name).tiny()
    rule = cases.make_rule(name, config, {}, parallel.Rules())
    batch = cases.batch_of(name, config)
    state = rule.init(0)

    def loss(params: Any, batch: Any) -> Any:
        variables = {"params": params, **state.variables}
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        objective, options = rule.task.objective, rule.task.objective_config
        sums, _ = objective.sums(options, rule.task.model, variables, batch, key, train=True)
        return sums["loss"][0] * state.scale, sums["loss"][1]

    def plain(params: Any, batch: Any) -> Any:
        gradients, count = jax.grad(loss, has_aux=True)(params, batch)
        divisor = state.scale * jnp.maximum(count, 1)
        return jax.tree.map(lambda g: g / divisor, gradients)

    expected = jax.jit(plain)(state.params, batch)
    gradients, _, _ = jax.jit(rule.gradients)(state, batch)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_array_equal(a, b)


GPT = cases.family("transformer").tiny()
LLAMA = cases.llama(GPT)
VARIANTS = {
    "llama": (LLAMA, "", True, 1),
    "dropout": (dataclasses.replace(GPT, dropout=0.2), "", True, 1),
    "alibi, window, unrolled": (
        dataclasses.replace(GPT, position="alibi", windows=(7,), scan_unroll=0),
        "",
        True,
        1,
    ),
    "no sequence parallelism": (GPT, "", False, 1),
    "replicated mlp and vocabulary": (GPT, "mlp=,vocab=", True, 1),
    "replicated heads": (GPT, "heads=,kv_heads=", True, 1),
    "accumulation": (GPT, "", True, 2),
    "fsdp along heads, mlp and vocabulary": (
        dataclasses.replace(LLAMA, position="alibi", dropout=0.2),
        "embed=,heads=fsdp,kv_heads=fsdp,mlp=fsdp,vocab=fsdp",
        True,
        1,
    ),
}


@pytest.mark.parametrize(
    "variant",
    but_slow(VARIANTS, "replicated mlp and vocabulary", "fsdp along heads, mlp and vocabulary"),
)
def test_transformer_variants(variant: str) -> None:
    config, rules, sequence, accumulate = VARIANTS[variant]
    table = parallel.parse_rules(rules, sequence)
    reference = cases.measure("transformer", config, {}, accumulate=accumulate)
    sizes = cases.MESHES["fsdp2 x tensor2 x data2"]
    result = cases.measure("transformer", config, sizes, table, accumulate=accumulate)
    cases.assert_same(result, reference)


def test_accumulation_equals_one_large_batch() -> None:
    whole = cases.measure("transformer", GPT, {})
    parts = cases.measure("transformer", GPT, {}, accumulate=4)
    assert cases.worst(parts.gradients, whole.gradients)[0] <= TOLERANCE


def test_dropout_masks_do_not_depend_on_the_mesh() -> None:
    from nn.parallel.random import keep_mask

    key = jax.random.key(3)
    P = jax.sharding.PartitionSpec
    whole = keep_mask(key, 0.3, (8, 6, 4), [(), (), ()])
    mesh = parallel.make_mesh({"data": 2, "fsdp": 2, "tensor": 2}, jax.devices())
    split = [("data", "fsdp"), ("tensor",), ()]
    parts = parallel.spmd(
        lambda key: keep_mask(jax.random.wrap_key_data(key), 0.3, (2, 3, 4), split),
        mesh,
        parallel.Rules(),
        P(),
        P(("data", "fsdp"), "tensor"),
    )(jax.random.key_data(key))
    np.testing.assert_array_equal(whole, parts)
    assert abs(float(keep_mask(key, 0.3, (200, 500), [(), ()]).mean()) - 0.7) < 0.01


@pytest.mark.parametrize(
    "sizes, words",
    [
        ({"data": 3}, "nearest mesh that fits: data=8"),
        ({"tensor": 16}, "nearest mesh that fits: data=1 tensor=8"),
        ({"data": -1, "fsdp": -1}, "only one may be"),
        ({"fsdp": 0}, "must be a positive size"),
        ({"tenser": 2}, "nearest: 'tensor'"),
    ],
)
def test_impossible_meshes_are_refused(sizes: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parallel.make_mesh(sizes, jax.devices())


@pytest.mark.parametrize(
    "rule, nearest",
    [
        ("mlp=data", "mlp=fsdp"),
        ("vocab=expert", "vocab=fsdp"),
        ("heads=context", "heads=fsdp"),
        ("layers=fsdp", "layers=pipe"),
        ("expert=tensor", "expert=expert"),
    ],
)
def test_axes_that_split_examples_cannot_split_weights(rule: str, nearest: str) -> None:
    """They would sum the partial products of different examples, silently."""
    with pytest.raises(ValueError, match=f"{rule}: .* only; nearest: {nearest}"):
        parallel.parse_rules(rule, True)


def test_ways_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown mesh.attention 'rign': .*; nearest: 'ring'"):
        parallel.Rules(attention="rign")


def test_sizes_that_do_not_divide_are_refused() -> None:
    config = dataclasses.replace(GPT, num_heads=2)
    rule = cases.make_rule("transformer", config, {"tensor": 8}, parallel.Rules())
    with pytest.raises(ValueError, match=r"heads' of size 2 is not divisible by mesh.tensor=8"):
        rule.task.variable_specs()


def test_one_axis_cannot_split_two_dimensions() -> None:
    rules = parallel.parse_rules("embed=tensor", True)
    rule = cases.make_rule("transformer", GPT, {"tensor": 4}, rules)
    with pytest.raises(ValueError, match="splits two of its dimensions"):
        rule.task.variable_specs()
