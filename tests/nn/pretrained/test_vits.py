"""The tables of vision transformers; that the numbers are right is what tests/parity/vits.py
checks."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import numpy as np
import pytest

from nn.families import vit
from nn.parallel import unbox
from nn.pretrained import Format, find, from_ours, to_ours
from tests import golden_store
from tests.parity.vits import file_of, format_of

RECORDS = [name for name in golden_store.names() if name.startswith("vits.")]
HALF = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.5)


def opened(name: str) -> tuple[Format, vit.Config, dict[str, np.ndarray]]:
    """Format, config and tensors of a record."""
    record = golden_store.load(name)
    table = format_of(record)
    return table, table.config_from(record.about["config"]), file_of(record)


@pytest.mark.parametrize("name", RECORDS)
def test_load_and_save_is_the_identity(name: str) -> None:
    table, config, file = opened(name)
    saved = from_ours(table, to_ours(table, file, config), config)
    assert saved.keys() == file.keys()
    for tensor, x in file.items():
        np.testing.assert_array_equal(saved[tensor], x, err_msg=tensor, strict=True)
        assert saved[tensor].flags.c_contiguous
    assert table.config_from(json.loads(json.dumps(table.config_to(config)))) == config


@pytest.mark.parametrize("name", RECORDS)
def test_parameters_are_those_of_the_model(name: str) -> None:
    table, config, file = opened(name)
    made = jax.eval_shape(vit.Model(config).init, jax.random.key(0), *vit.example(config, 1))
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), unbox(made)["params"])
    ours = to_ours(table, file, config)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), ours) == shapes


@pytest.mark.parametrize("preset", vit.PRESETS)
def test_presets_can_be_written(preset: str) -> None:
    config = vit.PRESETS[preset]
    kinds = {"vit": "vit", "mae": "vit_mae", "dinov2": "dinov2", "dinov3": "dinov3_vit"}
    table = find(kinds[preset.partition("-")[0]])
    if preset.startswith("vit"):
        raw = table.config_to(config)
        assert len(raw["id2label"]) == 1000
    assert table.config_from(table.config_to(config)) == config


def test_published_configs_are_the_presets() -> None:
    """What the config.json of published models say, less what is nothing to the numbers."""
    base = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
    labels = {"id2label": {str(i): f"class {i}" for i in range(1000)}}
    patch = {"image_size": 224, "patch_size": 16}
    named: list[tuple[str, dict[str, Any]]] = [
        ("vit-base-16", {"model_type": "vit", **base, **patch, **labels}),
        ("mae-base-16", {"model_type": "vit_mae", **base, **patch, "mask_ratio": 0.75}),
        ("dinov2-base", {"model_type": "dinov2", **base, "image_size": 518, "patch_size": 14}),
        (
            "dinov2-base-registers",
            {"model_type": "dinov2_with_registers", **base, "image_size": 518, "patch_size": 14},
        ),
        ("dinov3-small", {"model_type": "dinov3_vit", "num_register_tokens": 4}),
    ]
    for preset, raw in named:
        assert find(raw["model_type"]).config_from(raw) == vit.PRESETS[preset], preset


def test_the_decoder_of_mae_is_left_out() -> None:
    table, config, file = opened("vits.vit_mae")
    whole = {f"vit.{name}": x for name, x in file.items()}
    whole |= {"decoder.mask_token": np.zeros((1, 1, 8)), "decoder.decoder_norm.bias": np.ones(8)}
    ours, theirs = to_ours(table, whole, config), to_ours(table, file, config)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_other_positions_of_mae_are_refused() -> None:
    table, config, file = opened("vits.vit_mae")
    name = "embeddings.position_embeddings"
    to_ours(table, file | {name: file[name].astype(np.float16)}, config)
    for wrong in (np.zeros_like(file[name]), file[name][:, :4]):
        with pytest.raises(ValueError, match=f"'{name}' holds other positions .*'vit'"):
            to_ours(table, file | {name: wrong}, config)


def test_kernels_of_patches_are_turned_and_gates_split() -> None:
    table, config, file = opened("vits.dinov2_swiglu")
    ours = to_ours(table, file, config)
    theirs = file["embeddings.patch_embeddings.projection.weight"]
    assert ours["embed"]["kernel"][2, 0, 1, 4] == theirs[4, 1, 2, 0]
    both = file["encoder.layer.1.mlp.weights_in.weight"]
    F = config.mlp_width
    np.testing.assert_array_equal(ours["blocks"]["mlp"]["gate"]["kernel"][1], both[:F].T)
    np.testing.assert_array_equal(ours["blocks"]["mlp"]["up"]["kernel"][1], both[F:].T)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"model_type": "vit", "hidden_act": "mish"}, "unknown hidden_act 'mish'"),
        (
            {"model_type": "vit", "architectures": ["ViTForMaskedImageModeling"]},
            "unknown architecture 'ViTForMaskedImageModeling'",
        ),
        (
            {"model_type": "vit", "architectures": ["ViTModel"], "pooler_act": "relu"},
            "pooler_act='relu'",
        ),
        (
            {"model_type": "vit", "architectures": ["ViTModel"], "pooler_output_size": 5},
            "pooler_output_size=5: our ViT does not have that; nearest: 768",
        ),
        ({"model_type": "vit", "hidden_size": "768"}, "hidden_size='768': must be of type int"),
        ({"model_type": "vit_mae", "hidden_dropout_prob": 0.1}, "hidden_dropout_prob=0.1"),
        ({"model_type": "dinov2", "drop_path_rate": 0.1}, "drop_path_rate=0.1.*nearest: 0.0"),
        ({"model_type": "dinov2", "layerscale_value": 0.0}, "layerscale_value=0.0.*nearest: 1.0"),
        ({"model_type": "dinov3_vit", "drop_path_rate": 0.3}, "drop_path_rate=0.3"),
        (
            {"model_type": "dinov3_vit", "use_gated_mlp": True, "hidden_act": "swish"},
            "unknown hidden_act 'swish'",
        ),
    ],
    ids=str,
)
def test_other_configs_are_refused(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find(raw["model_type"]).config_from(raw)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("vits.vit", {"num_registers": 1}),
        ("vits.vit", {"activation": "swiglu"}),
        ("vits.vit", {"pool": "mean"}),
        ("vits.vit", {"unbiased": ("key",)}),
        ("vits.vit", {"pooler": True}),
        ("vits.vit_mae", {"position": "learned"}),
        ("vits.dinov2", {"pool": "class"}),
        ("vits.dinov2", {"mlp_dim": 50}),
        ("vits.dinov2", {"num_registers": 2}),
        ("vits.dinov2_registers", {"mask_token": False}),
        ("vits.dinov3", {"num_classes": 3}),
        ("vits.dinov3", {"layer_scale": 0.0}),
    ],
    ids=str,
)
def test_what_a_file_cannot_hold_is_refused(name: str, change: dict[str, Any]) -> None:
    table, config, _ = opened(name)
    with pytest.raises(ValueError, match="nearest|choose from"):
        table.table(dataclasses.replace(config, **change))


def test_rates_of_dropout_are_kept() -> None:
    config = find("vit").config_from({"model_type": "vit", **HALF})
    assert (config.dropout, config.attention_dropout) == (0.5, 0.5)
    written = find("vit").config_to(config)
    assert {key: written[key] for key in HALF} == HALF
