"""CLIP's table; that the numbers are right is what tests/parity/clips.py checks."""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np
import pytest

from nn.families import clip as family
from nn.parallel import unbox
from nn.pretrained import clip, find, from_ours, to_ours
from tests import golden_store
from tests.parity.vits import file_of

RECORDS = [name for name in golden_store.names() if name.startswith("clips.")]


def opened(name: str) -> tuple[family.Config, dict[str, np.ndarray]]:
    """Config and tensors of a record."""
    record = golden_store.load(name)
    return clip.config_from(record.about["config"]), file_of(record)


@pytest.mark.parametrize("name", RECORDS)
def test_load_and_save_is_the_identity(name: str) -> None:
    config, file = opened(name)
    saved = from_ours(clip, to_ours(clip, file, config), config)
    assert saved.keys() == file.keys()
    for tensor, x in file.items():
        np.testing.assert_array_equal(saved[tensor], x, err_msg=tensor, strict=True)
    assert clip.config_from(json.loads(json.dumps(clip.config_to(config)))) == config


@pytest.mark.parametrize("name", RECORDS)
def test_parameters_are_those_of_the_model(name: str) -> None:
    config, file = opened(name)
    example = family.example(config, 1)
    made = jax.eval_shape(family.Model(config).init, jax.random.key(0), *example)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), unbox(made)["params"])
    ours = to_ours(clip, file, config)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), ours) == shapes


@pytest.mark.parametrize("preset", family.PRESETS)
def test_presets_can_be_written(preset: str) -> None:
    config = family.PRESETS[preset]
    assert clip.config_from(clip.config_to(config)) == config
    assert find(config.kind) is clip


def test_published_configs_are_the_presets() -> None:
    """What the config.json of published models say, less what is nothing to the numbers."""
    large = {
        "model_type": "clip",
        "projection_dim": 768,
        "text_config": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
            "eos_token_id": 2,
        },
        "text_config_dict": None,
        "vision_config": {"patch_size": 16},
        "vision_config_dict": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "patch_size": 14,
        },
    }
    assert clip.config_from(large) == family.PRESETS["clip-large-14"]
    base = {
        "model_type": "siglip",
        "text_config": {"model_type": "siglip_text_model"},
        "vision_config": {"model_type": "siglip_vision_model"},
    }
    assert clip.config_from(base) == family.PRESETS["siglip-base-16"]


def test_older_files_hold_numbers_of_positions() -> None:
    config, file = opened("clips.clip")
    numbers = {
        f"{tower}_model.embeddings.position_ids": np.arange(5)[None] for tower in ("text", "vision")
    }
    to_ours(clip, file | numbers, config)
    with pytest.raises(ValueError, match="unknown tensor 'text_model.position_ids'"):
        to_ours(clip, file | {"text_model.position_ids": np.arange(5)}, config)


def test_projections_side_by_side_are_split() -> None:
    config, file = opened("clips.siglip")
    pool = to_ours(clip, file, config)["image_pool"]
    both, D = file["vision_model.head.attention.in_proj_weight"], config.image_dim
    np.testing.assert_array_equal(pool["key_kernel"].reshape(D, D), both[D : 2 * D].T)
    bias = file["vision_model.head.attention.in_proj_bias"]
    np.testing.assert_array_equal(pool["value_bias"].reshape(-1), bias[2 * D :])


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"model_type": "blip"}, "unknown model_type 'blip'"),
        (
            {"model_type": "clip", "text_config": {"layer_norm_eps": 1e-6}},
            "text_config.layer_norm_eps=1e-06: our CLIP does not have that; nearest: 1e-05",
        ),
        (
            {"model_type": "siglip", "vision_config": {"vision_use_head": False}},
            "vision_use_head=False",
        ),
        (
            {"model_type": "siglip", "text_config": {"projection_size": 5}},
            "projection_size=5: our SigLIP does not have that; nearest: 768",
        ),
        ({"model_type": "clip", "vision_config": {"hidden_act": "mish"}}, "unknown hidden_act"),
        (
            {"model_type": "clip", "text_config": {"model_type": "bert"}},
            "unknown model_type 'bert'",
        ),
    ],
    ids=str,
)
def test_other_configs_are_refused(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clip.config_from(raw)
