"""The rules for the size of a model beside the tables of their papers, for every family."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn import parallel
from nn.learning.parametrisation import FACTORS, compare, scaled
from nn.learning.tune import Tune
from nn.parallel.weight import Named
from tests import parallel_cases as cases
from tests.widths import abstract, first_values, narrow_of, network, wide_of

# (m_in, m_out, l) of some weights of a decoder four times as wide and three times as deep
DECODER = {
    "embed/embedding": (1, 4, 1),
    "positions/embedding": (1, 4, 1),
    "blocks/attention_norm/scale": (1, 4, 3),
    "blocks/attention/query_kernel": (4, 4, 3),
    "blocks/attention/query_bias": (1, 4, 3),
    "blocks/attention/out_kernel": (4, 4, 3),
    "blocks/attention/out_bias": (1, 4, 3),
    "blocks/mlp/up/kernel": (4, 4, 3),
    "blocks/mlp/down/kernel": (4, 4, 3),
    "final_norm/scale": (1, 4, 1),
    "output/kernel": (4, 1, 1),
    "head_bias": (1, 1, 1),
}


def decoders(**fields: Any) -> tuple[Any, Any]:
    narrow = dataclasses.replace(
        narrow_of("transformer"), tie_embeddings=False, head_bias=True, **fields
    )
    return narrow, dataclasses.replace(narrow, dim=64, mlp_dim=4 * narrow.mlp_dim, num_layers=6)


def test_rates_and_first_values_are_those_of_the_papers() -> None:
    narrow, wide = decoders()
    rows = compare("completep", abstract("transformer", wide), abstract("transformer", narrow))
    for path, (m_in, m_out, depth) in DECODER.items():
        row = rows[path]
        assert (row.fan_in, row.fan_out, row.depth) == (m_in, m_out, depth), path
        # Yang et al. 2022, table 3; Dey et al. 2025, table 1: Adam's rate and its epsilon.
        assert row.adam_rate == 1 / m_in
        assert row.gradient == 1 / (m_out * depth)
        assert row.sgd_rate == depth * m_out / m_in
    kinds = {path: rows[path].kind for path in DECODER}
    assert kinds["output/kernel"] == "output"
    assert kinds["blocks/mlp/up/kernel"] == "hidden"
    assert kinds["embed/embedding"] == kinds["blocks/attention/out_bias"] == "input"
    assert kinds["head_bias"] == "fixed"
    # The head's variance is 1 / m_in^2, that of hidden weights 1 / m_in; 1 / sqrt(2 layers) of
    # those that write to the residual does not follow the depth.
    assert rows["output/kernel"].initial == pytest.approx(1 / 4)
    assert rows["blocks/attention/query_kernel"].initial == pytest.approx(1 / 2)
    assert rows["blocks/mlp/down/kernel"].initial == pytest.approx(3**0.5 / 2)
    assert rows["embed/embedding"].initial == rows["blocks/attention_norm/scale"].initial == 1
    assert wide.factors(narrow) == pytest.approx(
        {"attention_factor": 0.5, "branch_factor": 1 / 3, "logit_factor": 1.0}
    )


def test_first_values_have_the_size_that_the_rule_wants() -> None:
    narrow, wide = network((3, 12, 4)), network((3, 96, 4))
    made = parallel.unbox(scaled(wide, compare("mup", wide, narrow)))
    sizes = {"first": 0.5, "blocks": 0.5 * 8**-0.5, "output": 0.5 / 8}
    for name, size in sizes.items():
        assert float(made[name]["kernel"].std()) == pytest.approx(size, rel=0.06), name
    assert (made["blocks"]["scale"] == wide["blocks"]["scale"].value).all()
    # Widths that grow apart: what has fewer outputs than inputs is as small as its outputs are few.
    tree, base = ({"kernel": Named(jnp.ones(n), ("embed", "mlp"), 1.0)} for n in ((8, 4), (2, 2)))
    assert compare("mup", tree, base)["kernel"].initial == pytest.approx(4**-0.5 * 0.5**0.5)


# Weights that sum over what grows and make what does not.
OUTPUTS = {
    "mlp": {"output/kernel"},
    "neural_lm": {"output/kernel"},
    "resnet": {"output/kernel"},
    "transformer": set(),
    "vit": {"output/kernel"},
    "bert": set(),
    "seq2seq_transformer": set(),
    "clip": set(),
    "whisper": set(),
}


@pytest.mark.parametrize("name", cases.family_names())
def test_kinds_of_weights_of_every_family(name: str) -> None:
    narrow = narrow_of(name)
    wide = wide_of(name, narrow)
    rows = compare("mup", abstract(name, wide), abstract(name, narrow))
    kinds = {
        kind: {p for p, row in rows.items() if row.kind == kind}
        for kind in ("input", "hidden", "output", "fixed")
    }
    assert kinds["output"] == OUTPUTS[name]
    assert kinds["hidden"]
    assert all(path.endswith("kernel") for path in kinds["hidden"])
    itself = compare("mup", abstract(name, narrow), abstract(name, narrow)).values()
    assert {(row.initial, row.adam_rate, row.sgd_rate, row.gradient) for row in itself} == {
        (1.0, 1.0, 1.0, 1.0)
    }
    set_ = [field for field in FACTORS if hasattr(narrow, field)]
    assert all(getattr(narrow, field) == 1 for field in set_)
    if hasattr(narrow, "factors"):
        assert narrow.factors(narrow) == dict.fromkeys(set_, 1.0)


def test_vocabularies_and_rows_of_tables_are_no_widths() -> None:
    for name, fields, paths in (
        ("transformer", {"vocab_size": 48, "context_length": 12}, ("embed", "positions", "output")),
        ("vit", {"image_size": (12, 12)}, ("embed/positions",)),
        ("seq2seq_transformer", {"relative_buckets": 8}, ("encoder/relative",)),
    ):
        narrow = decoders()[0] if name == "transformer" else narrow_of(name)
        other = dataclasses.replace(narrow, **fields)
        rows = compare("mup", abstract(name, other), abstract(name, narrow))
        differ = {path for path, row in rows.items() if row.shape != row.base_shape}
        assert all(any(path.startswith(p) for path in differ) for p in paths)
        assert {(row.fan_in, row.fan_out) for row in rows.values()} == {(1, 1)}


def test_branches_are_multiplied() -> None:
    """After their norm, where they have one; here by the first layer's attention."""
    narrow = dataclasses.replace(narrow_of("transformer"), norm_order="sandwich")
    params = first_values("transformer", narrow)
    blocks = jax.tree.map(lambda x: x[:1], params["blocks"])
    params["blocks"] = blocks | {
        name: jax.tree.map(jnp.zeros_like, blocks[name]) for name in ("mlp", "mlp_out_norm")
    }
    (tokens,) = cases.family("transformer").example(narrow, 2)

    def after(factor: float) -> jax.Array:
        config = dataclasses.replace(narrow, branch_factor=factor, num_layers=1)
        model = cases.family("transformer").Model(config)
        apply = jax.jit(lambda p: model.apply({"params": p}, tokens, mutable=["intermediates"]))
        (residual_LBTD,) = apply(params)[1]["intermediates"]["blocks"]["residual"]
        return residual_LBTD

    whole, third, none = after(1.0), after(1 / 3), after(0.0)
    np.testing.assert_allclose(third - none, (whole - none) / 3, rtol=1e-3, atol=1e-5)
    assert float(jnp.abs(whole - none).max()) > 0.1


def test_low_rank_factors_have_rates_of_their_own() -> None:
    """Hayou, Ghosh & Yu 2024 (LoRA+): the second factor's rate does not follow the width."""
    names = ("layers", "embed", "heads", "head_dim")
    pair = []
    for dim in (8, 32):
        weight = Named(jnp.zeros((2, dim, dim // 4, 4)), names, 0.1)
        tree = Tune(lora_rank=2).with_factors({"query_kernel": weight}, 0)
        pair.append(tree)
    rows = compare("mup", pair[1], pair[0])
    a, b = rows["query_kernel_lora_a"], rows["query_kernel_lora_b"]
    assert (a.fan_in, a.fan_out, b.fan_in, b.fan_out) == (4, 1, 1, 4)
    assert a.initial == b.initial == 1  # tune.py makes them as wide as they are


def test_what_cannot_be_compared_is_refused() -> None:
    narrow, wide = (abstract("transformer", c) for c in decoders())
    with pytest.raises(ValueError, match=r"'mup' is for models of one depth.*completep"):
        compare("mup", wide, narrow)
    other = abstract("transformer", dataclasses.replace(decoders()[0], activation="swiglu"))
    with pytest.raises(ValueError, match=r"scale.base has blocks/mlp/gate"):
        compare("mup", narrow, other)
    with pytest.raises(ValueError, match=r"scale.base lacks blocks/mlp/gate"):
        compare("mup", other, narrow)
    with pytest.raises(ValueError, match=r"nearest: 'mup'"):
        compare("mupp", narrow, narrow)
    first, second = network((3, 6, 4)), network((3, 6, 4))
    second["output"]["kernel"] = second["output"]["kernel"].replace(names=("mlp", None))
    with pytest.raises(ValueError, match="output/kernel has the dimensions"):
        compare("mup", first, second)


def test_stacks_that_want_different_factors_are_refused() -> None:
    clip = narrow_of("clip")
    deeper = dataclasses.replace(clip, image_layers=2 * clip.image_layers)
    with pytest.raises(ValueError, match="want factors of their own"):
        deeper.factors(clip)
    post = narrow_of("bert")
    with pytest.raises(ValueError, match=r"norm is after their sum .* 2 layers beside 1"):
        post.factors(dataclasses.replace(post, num_layers=1))
