"""Transformers whose positions are split over `context` equal one device, with every other axis."""

from __future__ import annotations

import dataclasses
import functools

import jax
import pytest

from nn import parallel
from tests import parallel_cases as cases

GPT = cases.family("transformer").tiny()
LLAMA = cases.llama(GPT)
VARIANTS = {
    "gpt": GPT,
    "llama": LLAMA,
    "window": dataclasses.replace(LLAMA, windows=(5,), num_kv_heads=1),
    "alibi": dataclasses.replace(LLAMA, position="alibi"),
    "gemma": dataclasses.replace(
        LLAMA,
        norm="rms_one",
        norm_order="sandwich",
        qk_norm="row",
        attention_cap=2.0,
        logit_cap=1.5,
        windows=(5, 0),
        rope_local_theta=50.0,
        parallel="two_norms",
        head_bias=True,
        embed_dim=24,
    ),
    "dropout": dataclasses.replace(LLAMA, dropout=0.2),
}
MESHES = {
    "context8": {"context": 8},
    "context4 x data2": {"context": 4, "data": 2},
    "context2 x tensor2 x data2": {"context": 2, "tensor": 2, "data": 2},
    "context2 x fsdp4": {"context": 2, "fsdp": 4},
}
RUNS = [
    ("gpt", "context8", "ring"),
    ("gpt", "context2 x fsdp4", "ring"),
    ("llama", "context4 x data2", "ring"),
    ("window", "context2 x tensor2 x data2", "ring"),
    ("alibi", "context2 x tensor2 x data2", "ring"),
    ("gemma", "context2 x tensor2 x data2", "ring"),
    ("gemma", "context4 x data2", "gather"),
    ("dropout", "context2 x fsdp4", "gather"),
    ("dropout", "context4 x data2", "ring"),
    ("dropout", "context2 x tensor2 x data2", "ring"),
    ("llama", "context8", "ulysses"),
    ("window", "context2 x fsdp4", "ulysses"),
    ("alibi", "context4 x data2", "ulysses"),
    ("dropout", "context2 x tensor2 x data2", "ulysses"),
]


@functools.cache
def one_device(variant: str) -> cases.Result:
    return cases.measure("transformer", VARIANTS[variant], {})


@pytest.mark.parametrize(("variant", "mesh", "attention"), RUNS)
def test_context_equals_one_device(variant: str, mesh: str, attention: str) -> None:
    reference = one_device(variant)
    rules = parallel.Rules(sequence_parallel=True, attention=attention)
    result = cases.measure("transformer", VARIANTS[variant], MESHES[mesh], rules)
    cases.assert_same(result, reference)


def test_what_cannot_be_split_is_refused() -> None:
    short = dataclasses.replace(GPT, context_length=12)
    with pytest.raises(ValueError, match="12 positions cannot be cut into the 16 parts"):
        cases.measure("transformer", short, {"context": 8})
    rules = parallel.Rules(attention="ulysses")
    with pytest.raises(ValueError, match=r"there are 4; nearest: mesh.context=4"):
        cases.measure("transformer", GPT, {"context": 8}, rules)


def test_attention_weights_are_sown_where_a_shard_has_them() -> None:
    """Under `context` no shard has."""
    rule = cases.make_rule("transformer", GPT, {"context": 2}, parallel.Rules())
    tokens = cases.batch_of("transformer", GPT)["inputs"]
    variables = parallel.unbox(rule.task.variables(0))
    P = jax.sharding.PartitionSpec

    def names(sizes: dict[str, int]) -> set[str]:
        mesh = parallel.make_mesh(sizes, jax.devices()[: max(sizes.values())])

        def run(tokens: jax.Array) -> jax.Array:
            _, sown = rule.task.model.apply(variables, tokens, mutable="intermediates")
            found.update(jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(sown))
            return tokens

        found: set[str] = set()
        spec = P(None, "context")
        jax.eval_shape(parallel.spmd(run, mesh, parallel.Rules(), spec, spec), tokens)
        return {"attention" if "'attention'][0]" in name else "residual" for name in found}

    assert names({"data": 1}) == {"attention", "residual"}
    assert names({"context": 2}) == {"residual"}
