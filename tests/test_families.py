"""Every family, found by listing the folder, is put through the same properties."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.run import config as configs
from nn import parallel
from tests import parallel_cases as cases

NAMES = cases.family_names()
# As published; of models that transformers has, its own count of the same config.json.
COUNTS = {
    # |V| (1 + h + m) + h (1 + (n - 1) m): the paper's count without direct connections.
    ("neural_lm", "brown"): 16383 * (1 + 100 + 30) + 100 * (1 + 4 * 30),
    ("transformer", "gpt"): 116_534_784,
    ("bert", "bert-base"): 110_106_428,
    ("bert", "bert-large"): 336_226_108,
    ("bert", "roberta-base"): 124_697_433,
    ("bert", "roberta-large"): 355_412_057,
    ("bert", "distilbert-base"): 66_985_530,
    ("bert", "electra-small"): 13_549_057,
    ("bert", "electra-base"): 109_483_009,
    ("bert", "electra-large"): 335_142_913,
    # One norm more than is published, which the first layer has and does not use.
    ("bert", "modernbert-base"): 149_655_232 + 768,
    ("bert", "modernbert-large"): 395_881_664 + 1024,
    ("transformer", "gpt2"): 124_439_808,
    ("transformer", "gpt2-medium"): 354_823_168,
    ("transformer", "gpt2-large"): 774_030_080,
    ("transformer", "gpt2-xl"): 1_557_611_200,
    ("transformer", "gpt3"): 174_604_259_328,
    ("transformer", "gpt-neo-125m"): 125_198_592,
    ("transformer", "gpt-neo-1.3b"): 1_315_575_808,
    ("transformer", "gpt-neo-2.7b"): 2_651_307_520,
    ("transformer", "gpt-j-6b"): 6_050_882_784,
    ("transformer", "gpt-neox-20b"): 20_554_567_680,
    ("transformer", "opt-125m"): 125_239_296,
    ("transformer", "opt-350m"): 331_196_416,
    ("transformer", "opt-1.3b"): 1_315_758_080,
    ("transformer", "opt-6.7b"): 6_658_473_984,
    ("transformer", "palm-8b"): 8_632_012_800,
    ("transformer", "palm-62b"): 62_495_662_080,
    ("transformer", "palm-540b"): 540_356_474_880,
    ("transformer", "llama2-7b"): 6_738_415_616,
    ("transformer", "llama2-13b"): 13_015_864_320,
    ("transformer", "llama2-70b"): 68_976_648_192,
    ("transformer", "llama3-8b"): 8_030_261_248,
    ("transformer", "llama3-70b"): 70_553_706_496,
    ("transformer", "llama3-405b"): 405_853_388_800,
    ("transformer", "llama3.2-1b"): 1_235_814_400,
    ("transformer", "llama3.2-3b"): 3_212_749_824,
    ("transformer", "mistral-7b"): 7_241_732_096,
    ("transformer", "mixtral-8x7b"): 46_702_792_704,
    ("transformer", "mixtral-8x22b"): 140_620_634_112,
    ("transformer", "qwen2.5-0.5b"): 494_032_768,
    ("transformer", "qwen2.5-7b"): 7_615_616_512,
    ("transformer", "qwen3-0.6b"): 596_049_920,
    ("transformer", "qwen3-8b"): 8_190_735_360,
    ("transformer", "gemma2-2b"): 2_614_341_888,
    ("transformer", "gemma2-9b"): 9_241_705_984,
    ("transformer", "gemma3-1b"): 999_885_952,
    ("transformer", "gemma3-4b"): 3_880_263_168,
    ("transformer", "olmo2-7b"): 7_298_617_344,
    ("transformer", "olmo2-13b"): 13_716_198_400,
    # 44,138,496 and 176,357,376, and 37,000 tokens
    ("seq2seq_transformer", "transformer-base"): 63_082_496,
    ("seq2seq_transformer", "transformer-big"): 214_245_376,
    ("seq2seq_transformer", "t5-small"): 60_506_624,
    ("seq2seq_transformer", "t5-base"): 222_903_552,
    ("seq2seq_transformer", "t5-11b"): 11_307_321_344,
    ("seq2seq_transformer", "t5-v1.1-small"): 76_961_152,
    # with the bias of the head, which others do not count: 50,265 or 58,101
    ("seq2seq_transformer", "bart-base"): 139_470_681,
    ("seq2seq_transformer", "bart-large"): 406_341_721,
    ("seq2seq_transformer", "opus-mt-en-de"): 73_944_309,
    # Less the encoder's positions, which are fixed, as files and the paper's own code count them.
    ("whisper", "tiny"): 37_760_640 - 1500 * 384,
    ("whisper", "large-v3"): 1_543_490_560 - 1500 * 1280,
    ("resnet", "resnet18"): 11_689_512,
    ("resnet", "resnet34"): 21_797_672,
    ("resnet", "resnet50"): 25_557_032,
    ("resnet", "resnet101"): 44_549_160,
    ("resnet", "resnet152"): 60_192_808,
    ("clip", "clip-base-32"): 151_277_313,
    ("clip", "clip-base-16"): 149_620_737,
    ("clip", "clip-large-14"): 427_616_513,
    ("clip", "clip-large-14-336"): 427_944_193,
    ("clip", "siglip-base-16"): 203_155_970,
    ("clip", "siglip-large-16"): 652_150_786,
    ("clip", "siglip-so400m-14"): 877_960_498,
    ("vit", "vit-tiny-16"): 5_717_416,
    ("vit", "vit-small-16"): 22_050_664,
    ("vit", "vit-base-32"): 88_224_232,
    ("vit", "vit-base-16"): 86_567_656,
    ("vit", "vit-large-16"): 304_326_632,
    ("vit", "vit-huge-14"): 632_045_800,
    # Published files count the fixed positions too: 197 x 768, 197 x 1024, 257 x 1280.
    ("vit", "mae-base-16"): 85_798_656 - 151_296,
    ("vit", "mae-large-16"): 303_301_632 - 201_728,
    ("vit", "mae-huge-14"): 630_764_800 - 328_960,
    ("vit", "dinov2-small"): 22_056_576,
    ("vit", "dinov2-base"): 86_580_480,
    ("vit", "dinov2-large"): 304_368_640,
    ("vit", "dinov2-giant"): 1_136_480_768,
    ("vit", "dinov2-small-registers"): 22_058_112,
    ("vit", "dinov2-base-registers"): 86_583_552,
    ("vit", "dinov2-large-registers"): 304_372_736,
    ("vit", "dinov2-giant-registers"): 1_136_486_912,
    ("vit", "dinov3-small"): 21_596_544,
    ("vit", "dinov3-small-plus"): 28_692_864,
    ("vit", "dinov3-base"): 85_660_416,
    ("vit", "dinov3-large"): 303_129_600,
    ("vit", "dinov3-huge-plus"): 840_592_640,
    ("vit", "dinov3-7b"): 6_716_035_072,
}


@functools.cache
def built(name: str) -> tuple[Any, Any, Any, tuple[Any, ...]]:
    """Module, tiny model, initial variables and inputs of a family."""
    family = cases.family(name)
    config = family.tiny()
    model, inputs = family.Model(config), family.example(config, 4)
    variables = parallel.unbox(jax.jit(model.init)(jax.random.key(0), *inputs))
    variables = {k: v for k, v in variables.items() if k != "intermediates"}
    return family, model, variables, inputs


def parameter_count(family: Any, config: Any) -> int:
    model, inputs = family.Model(config), family.example(config, 1)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs))["params"]
    return sum(x.size for x in jax.tree.leaves(parallel.unbox(shapes)))


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_has_the_published_number_of_parameters(name: str) -> None:
    family = cases.family(name)
    counts = {preset: parameter_count(family, c) for preset, c in family.PRESETS.items()}
    published = {preset: n for (whose, preset), n in COUNTS.items() if whose == name}
    assert {preset: counts[preset] for preset in published} == published
    assert all(counts.values())


@pytest.mark.parametrize("name", NAMES)
def test_jit_equals_no_jit(name: str) -> None:
    _, model, variables, inputs = built(name)
    compiled = jax.jit(model.apply)(variables, *inputs)
    np.testing.assert_allclose(model.apply(variables, *inputs), compiled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_numbers(name: str) -> None:
    _, model, variables, inputs = built(name)
    again = parallel.unbox(jax.jit(model.init)(jax.random.key(0), *inputs))
    other = parallel.unbox(jax.jit(model.init)(jax.random.key(1), *inputs))
    for a, b in zip(
        jax.tree.leaves(variables["params"]), jax.tree.leaves(again["params"]), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    different = jax.tree.map(
        lambda a, b: bool((a != b).any()), variables["params"], other["params"]
    )
    assert any(jax.tree.leaves(different))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite_and_reach_every_parameter(name: str) -> None:
    family = cases.family(name)
    result = cases.measure(name, family.tiny(), {})
    for path, gradient in jax.tree_util.tree_leaves_with_path(result.gradients):
        where = jax.tree_util.keystr(path)
        assert np.isfinite(gradient).all(), where
        assert np.abs(gradient).max() > 0, where


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_stays_close(name: str) -> None:
    family, model, variables, inputs = built(name)
    full = model.apply(variables, *inputs)
    half = family.Model(family.tiny(), dtype=jnp.bfloat16).apply(variables, *inputs)
    scale = float(jnp.abs(full).max())
    np.testing.assert_allclose(full, half.astype(jnp.float32), atol=0.05 * scale)
    assert float(jnp.abs(full - half).max()) > 0, "bfloat16 changed nothing: is it used?"


@pytest.mark.parametrize("name", NAMES)
def test_names_have_one_entry_per_dimension(name: str) -> None:
    _, model, _, inputs = built(name)
    named = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs))
    for leaf in jax.tree.leaves(named["params"], is_leaf=lambda x: isinstance(x, parallel.Named)):
        assert isinstance(leaf, parallel.Named)
        assert len(leaf.names) == leaf.value.ndim


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_that_is_drawn_says_how(name: str) -> None:
    """What rules for the size of a model need to know of first values."""
    _, model, variables, inputs = built(name)
    named = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs))["params"]
    leaves = jax.tree_util.tree_leaves_with_path(
        named, is_leaf=lambda x: isinstance(x, parallel.Named)
    )
    values = jax.tree.leaves(variables["params"])
    for (path, leaf), value in zip(leaves, values, strict=True):
        where, spread = jax.tree_util.keystr(path), float(np.std(value))
        assert (leaf.stddev is None) == (spread < 1e-6), where
        if leaf.stddev is not None and value.size >= 256:
            assert spread == pytest.approx(leaf.stddev, rel=0.25), where


@pytest.mark.parametrize("name", NAMES)
def test_configs_are_frozen_and_every_field_can_be_written_in_a_config_file(name: str) -> None:
    config = cases.family(name).tiny()
    field = dataclasses.fields(config)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, field, 1)
    overrides = {f"model.{f.name}": getattr(config, f.name) for f in dataclasses.fields(config)}
    values = {"model.family": name, "data.sequence_length": 16, **overrides}
    loaded = configs.load("experiments/base.py", configs.overrides_of(values))
    assert configs.section(loaded, "model") == config
    assert configs.section(configs.from_json(configs.to_json(loaded)), "model") == config


@pytest.mark.parametrize(
    "name", [n for n in NAMES if cases.objective_of(n).__name__.endswith("next_token")]
)
def test_language_models_are_causal(name: str) -> None:
    _, model, variables, (tokens,) = built(name)
    changed = tokens.at[:, 9].set((tokens[:, 9] + 1) % 7)
    before, after = model.apply(variables, tokens), model.apply(variables, changed)
    np.testing.assert_array_equal(before[:, :9], after[:, :9])
    assert (before[:, 9:] != after[:, 9:]).any()
