"""The rules for the size of a model, beside the tables of their papers and what they promise.

A wide model whose units are copies of a narrow one's computes what the narrow one computes. Under
muP it also learns what that learns, step by step and number by number: with every optimizer, decay,
epsilon and limit of the gradient's norm. Nothing else does that, and no part of the rule may be
wrong or missing.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import base
from launch.run import optimizer
from nn import initializers, parallel
from nn.layers.position import sinusoids
from nn.learning.parametrisation import FACTORS, Row, compare, scaled
from nn.learning.tune import Tune
from nn.parallel.weight import Named
from tests import parallel_cases as cases

# Small models, and the fields that make them wider. What does not repeat when it is made longer,
# such as rotary frequencies, is left out.
NARROW: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "mlp": ({"features": (8, 12, 8), "norm": "layer"}, ("features",)),
    "neural_lm": ({"hidden_dim": 16}, ("hidden_dim", "embed_dim")),
    "resnet": ({"width": 4}, ("width",)),
    "transformer": ({"dim": 16}, ("dim", "mlp_dim")),
    "vit": ({"dim": 16, "num_layers": 2, "num_heads": 2}, ("dim", "mlp_dim", "num_heads")),
    "bert": ({"embed_dim": 12, "num_layers": 2}, ("dim", "mlp_dim", "embed_dim")),
    "seq2seq_transformer": ({"position": "relative", "scale_head": True}, ("dim", "mlp_dim")),
    "clip": (
        {"kind": "siglip", "embed_dim": 32},
        ("image_dim", "text_dim", "embed_dim", "image_mlp_dim", "text_mlp_dim"),
    ),
    "whisper": ({}, ("dim", "num_heads", "decoder_heads", "mlp_dim", "decoder_mlp_dim")),
}
EXPERTS = {
    "num_experts": 4,
    "expert_dim": 8,
    "num_kv_heads": 2,
    "tie_embeddings": False,
    "qk_norm": "head",
    "norm": "rms_one",
    "activation": "swiglu",
    "layer_scale": 0.0,
}


def options(name: str = "adamw", **values: Any) -> ConfigDict:
    found = base.get_config().optimizer
    # Large, so that a wrong factor would be seen.
    found.update(name=name, learning_rate=0.02, schedule="constant", eps=1e-3, clip_norm=0.05)
    found.update(weight_decay=0.5, **values)
    return found


def narrow_of(name: str) -> Any:
    fields, _ = NARROW[name]
    return dataclasses.replace(cases.family(name).tiny(), **fields)


def wide_of(name: str, narrow: Any, times: int = 2) -> Any:
    _, widths = NARROW[name]

    def larger(value: Any) -> Any:
        return tuple(times * x for x in value) if isinstance(value, tuple) else times * value

    wide = dataclasses.replace(narrow, **{f: larger(getattr(narrow, f)) for f in widths})
    if not hasattr(wide, "factors"):
        return wide
    return dataclasses.replace(wide, **wide.factors(narrow))


def abstract(name: str, config: Any) -> Any:
    family = cases.family(name)
    inputs = family.example(config, 2)
    return jax.eval_shape(lambda: family.Model(config).init(jax.random.key(0), *inputs))["params"]


def widened(params: Any, rows: dict[str, Row]) -> Any:
    """Every unit again and again; what sums over them is divided by how often."""

    def one(path: Any, x: Any) -> jax.Array:
        row = rows[jax.tree_util.keystr(path, simple=True, separator="/")]
        for axis, (new, old) in enumerate(zip(row.shape, row.base_shape, strict=True)):
            x = np.repeat(x, new // old, axis)
        return jnp.asarray(x / row.fan_in)

    return jax.tree_util.tree_map_with_path(one, params)


def losses(
    name: str, config: Any, params: Any, chain: ConfigDict, rows: Any, steps: int = 3
) -> list[float]:
    """Of the first steps from some parameters."""
    family, objective = cases.family(name), cases.objective_of(name)
    batch = {k: jnp.asarray(x) for k, x in cases.batch_of(name, narrow_of(name)).items()}
    named = abstract(name, config)
    method, _ = optimizer.make(chain, steps, named, rows=rows)
    model, key = family.Model(config), jax.random.key(0)
    rest = jax.eval_shape(lambda: model.init(key, *family.example(config, 2)))
    statistics = {
        kind: jax.tree.map(lambda x: jnp.zeros(x.shape), parallel.unbox(tree))
        for kind, tree in rest.items()
        if kind not in ("params", "intermediates")
    }

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            variables = {"params": params, **statistics}
            sums, _ = objective.sums(objective.Config(), model, variables, batch, key, train=True)
            return sums["loss"][0] / sums["loss"][1]

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = method.update(gradients, state, params)
        return jax.tree.map(jnp.add, params, updates), state, value

    state, found = method.init(params), []
    for _ in range(steps):
        params, state, value = step(params, state)
        found.append(float(value))
    return found


def first_values(name: str, config: Any) -> Any:
    """With biases that are not 0, and heads that say something."""
    family = cases.family(name)
    params = parallel.unbox(
        jax.jit(family.Model(config).init)(jax.random.key(1), *family.example(config, 2))
    )["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + rng.normal(size=x.shape).astype(np.float32) / 20, params)


def twins(
    name: str, narrow: Any, chain: ConfigDict, rule: str = "mup"
) -> tuple[list[float], list[float]]:
    """Losses of a model and of one with two copies of every unit."""
    wide = wide_of(name, narrow)
    rows = compare("mup", abstract(name, wide), abstract(name, narrow))
    params = first_values(name, narrow)
    used = rows if rule == "mup" else {}
    return (
        losses(name, narrow, params, chain, {}),
        losses(name, wide, widened(params, rows), chain, used),
    )


QUICK = ("mlp", "neural_lm", "transformer")
FAMILIES = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name in cases.family_names()
]


@pytest.mark.parametrize("name", FAMILIES)
def test_copies_of_all_units_learn_what_they_are_copies_of(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = narrow_of(name)
    if name == "whisper":  # whose positions are not learned, and hence not copied
        monkeypatch.setattr(
            "nn.families.whisper.model.sinusoids",
            lambda places, dim, **more: jnp.repeat(
                sinusoids(places, narrow.dim, **more), dim // narrow.dim, -1
            ),
        )
    before, after = twins(name, narrow, options())
    np.testing.assert_allclose(after, before, rtol=2e-4)
    assert abs(before[2] / before[0] - 1) > 0.01, "nothing was learned"


@pytest.mark.slow
def test_copies_of_experts_and_of_normed_heads_too() -> None:
    narrow = dataclasses.replace(narrow_of("transformer"), **EXPERTS)
    before, after = twins("transformer", narrow, options())
    np.testing.assert_allclose(after, before, rtol=2e-4)


def test_without_a_rule_they_learn_something_else() -> None:
    before, after = twins("neural_lm", narrow_of("neural_lm"), options(), rule="standard")
    assert after[0] == pytest.approx(before[0], rel=1e-5)
    assert abs(after[2] - before[2]) > 0.01


def network(sizes: tuple[int, int, int]) -> dict[str, Named]:
    """A stack of two hidden matrices between an input and an output."""
    inputs, hidden, outputs = sizes
    draw, key = initializers.normal(0.5), jax.random.key(0)

    def weight(i: int, *shape: int) -> jax.Array:
        return draw(jax.random.fold_in(key, i), shape)

    return {
        "first": {
            "kernel": Named(weight(0, inputs, hidden), (None, "embed"), 0.5),
            "bias": Named(weight(1, hidden), (None,)),
        },
        "blocks": {
            "kernel": Named(weight(2, 2, hidden, hidden), ("layers", "embed", "mlp"), 0.5),
            "scale": Named(weight(3, 2, hidden), ("layers", None)),
        },
        "output": {"kernel": Named(weight(4, hidden, outputs), ("embed", None), 0.5)},
    }


def run_network(params: Any, chain: ConfigDict, named: Any, rows: Any) -> np.ndarray:
    """What it gives after some steps."""
    x = jnp.sin(jnp.arange(15.0)).reshape(5, 3)
    y = jnp.cos(jnp.arange(20.0)).reshape(5, 4)
    method, _ = optimizer.make(chain, 4, named, rows=rows)

    def apply(p: Any) -> jax.Array:
        h = jnp.tanh(x @ p["first"]["kernel"] + p["first"]["bias"][None])
        for i in range(2):
            h = h + jnp.tanh(h @ p["blocks"]["kernel"][i]) * p["blocks"]["scale"][i][None]
        return h @ p["output"]["kernel"]

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        gradients = jax.grad(lambda p: jnp.mean(jnp.square(apply(p) - y)))(params)
        updates, state = method.update(gradients, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    state = method.init(params)
    for _ in range(4):
        params, state = step(params, state)
    return np.asarray(apply(params))


METHODS: dict[str, dict[str, Any]] = {
    "sgd": {"learning_rate": 0.5},
    "momentum": {"clip_norm": 0.0},
    "nesterov": {"learning_rate": 0.1},
    "rmsprop": {"weight_decay": 0.0},
    "adam": {"weight_decay": 0.0, "clip_norm": 0.0},
    "adamw": {"eps": 0.1, "decay_mask": "all"},
    "lion": {},
    "muon": {},
}


@pytest.mark.parametrize("name", METHODS)
def test_every_optimizer_treats_copies_alike(name: str) -> None:
    narrow, wide = network((3, 6, 4)), network((3, 18, 4))
    rows, params = compare("mup", wide, narrow), parallel.unbox(narrow)
    chain = options(name)
    chain.update(METHODS[name])
    before = run_network(params, chain, narrow, {})
    after = run_network(widened(params, rows), chain, wide, rows)
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-4)
    unlike = run_network(widened(params, rows), chain, wide, {})
    assert np.abs(unlike - before).max() > 0.01


def test_those_without_a_rule_are_known() -> None:
    without = {name for name, method in optimizer.METHODS.items() if method.scales is None}
    assert without == {"adafactor", "lamb"}
    assert {*METHODS, *without} == set(optimizer.NAMES)


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
    # The head's variance is 1 / m_in^2, that of hidden weights 1 / m_in; 0.02 / sqrt(2 layers) of
    # those that write to the residual does not follow the depth.
    assert rows["output/kernel"].initial == pytest.approx(1 / 4)
    assert rows["blocks/attention/query_kernel"].initial == pytest.approx(1 / 2)
    assert rows["blocks/mlp/down/kernel"].initial == pytest.approx(3**0.5 / 2)
    assert rows["embed/embedding"].initial == rows["blocks/attention_norm/scale"].initial == 1
    assert wide.factors(narrow) == pytest.approx(
        {"attention_factor": 0.5, "branch_factor": 1 / 3, "logit_factor": 1.0}
    )


def test_first_values_have_the_size_that_the_rule_wants() -> None:
    narrow = narrow_of("neural_lm")
    wide = dataclasses.replace(narrow, hidden_dim=8 * narrow.hidden_dim)
    family, key = cases.family("neural_lm"), jax.random.key(0)
    rows = compare("mup", abstract("neural_lm", wide), abstract("neural_lm", narrow))
    initial = jax.jit(lambda: family.Model(wide).init(key, *family.example(wide, 2))["params"])
    sizes = {"layers_0": (5 * 8) ** -0.5, "layers_1": 16**-0.5 / 8**0.5, "output": 16**-0.5 / 8}
    made = parallel.unbox(scaled(initial(), rows))
    for name, size in sizes.items():
        assert float(made[name]["kernel"].std()) == pytest.approx(size, rel=0.06), name
    # Widths that grow apart: what has fewer outputs than inputs is as small as its outputs are few.
    row = compare("mup", network((3, 36, 4)), network((3, 12, 4)))["output/kernel"]
    assert row.initial == pytest.approx(1 / 3)


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
        ("transformer", {"vocab_size": 48, "context_length": 12}, ("embed", "positions")),
        ("vit", {"image_size": (12, 12)}, ("embed/positions",)),
        ("seq2seq_transformer", {"relative_buckets": 8}, ("encoder/relative",)),
    ):
        narrow = narrow_of(name)
        other = dataclasses.replace(narrow, **fields)
        rows = compare("mup", abstract(name, other), abstract(name, narrow))
        differ = {path for path, row in rows.items() if row.shape != row.base_shape}
        assert all(any(path.startswith(p) for path in differ) for p in paths)
        assert {(row.fan_in, row.fan_out) for row in rows.values()} == {(1, 1)}


@pytest.mark.parametrize("order", ["pre", "sandwich"])
def test_branches_are_multiplied(order: str) -> None:
    narrow = dataclasses.replace(narrow_of("transformer"), norm_order=order)
    params = {"params": first_values("transformer", narrow)}
    (tokens,) = cases.family("transformer").example(narrow, 2)

    def added(factor: float) -> jax.Array:
        """By the first layer's attention, before anything follows from it."""
        config = dataclasses.replace(narrow, branch_factor=factor, num_layers=1)
        own = {**params["params"]}
        own["blocks"] = jax.tree.map(lambda x: x[:1], own["blocks"])
        own["blocks"]["mlp"] = jax.tree.map(jnp.zeros_like, own["blocks"]["mlp"])
        if order == "sandwich":
            own["blocks"]["mlp_out_norm"]["bias"] *= 0
        _, left = (
            cases.family("transformer")
            .Model(config)
            .apply({"params": own}, tokens, mutable=["intermediates"])
        )
        return left["intermediates"]["blocks"]["residual"][0]

    whole, third, none = added(1.0), added(1 / 3), added(0.0)
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
