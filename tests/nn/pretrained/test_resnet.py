"""ResNet's table; that the numbers are right is what tests/parity/resnets.py checks."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import numpy as np
import pytest

from nn.families import resnet as family
from nn.families.resnet import PRESETS
from nn.parallel import unbox
from nn.pretrained import from_ours, resnet, to_ours
from tests import golden_store
from tests.parity.resnets import file_of

RECORDS = [name for name in golden_store.names() if name.startswith("resnets.")]
RECORD = golden_store.load("resnets.bottleneck")
CONFIG = resnet.config_from(RECORD.about["config"])
FILE = file_of(RECORD)

# What the config.json of the published ResNet-18 says of the model.
PUBLISHED: dict[str, Any] = {
    "architectures": ["ResNetForImageClassification"],
    "depths": [2, 2, 2, 2],
    "downsample_in_first_stage": False,
    "embedding_size": 64,
    "hidden_act": "relu",
    "hidden_sizes": [64, 128, 256, 512],
    "layer_type": "basic",
    "model_type": "resnet",
    "num_channels": 3,
    "torch_dtype": "float32",
}


@pytest.mark.parametrize("name", RECORDS)
def test_load_and_save_is_the_identity(name: str) -> None:
    record = golden_store.load(name)
    config = resnet.config_from(record.about["config"])
    saved = from_ours(resnet, to_ours(resnet, file_of(record), config), config)
    counts = {key for key in saved if key.endswith("num_batches_tracked")}
    assert {saved[key].dtype for key in counts} == {np.dtype(np.int64)}
    assert saved.keys() - counts == file_of(record).keys()
    for key, x in file_of(record).items():
        np.testing.assert_array_equal(saved[key], x, err_msg=key, strict=True)
    # With the counts, as files have them.
    to_ours(resnet, saved, config)
    assert resnet.config_from(json.loads(json.dumps(resnet.config_to(config)))) == config


@pytest.mark.parametrize("name", RECORDS)
def test_variables_are_those_of_the_model(name: str) -> None:
    record = golden_store.load(name)
    config = resnet.config_from(record.about["config"])
    model = family.Model(config)
    made = jax.eval_shape(model.init, jax.random.key(0), *family.example(config, 1))
    made = {key: unbox(made[key]) for key in ("params", "batch_stats")}
    ours = to_ours(resnet, file_of(record), config)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), ours) == jax.tree.map(
        lambda x: (x.shape, x.dtype), made
    )


def test_published_configs_are_the_presets() -> None:
    labels = {"id2label": {str(i): f"class {i}" for i in range(1000)}}
    assert resnet.config_from(PUBLISHED | labels) == PRESETS["resnet18"]
    assert resnet.config_from(labels) == PRESETS["resnet50"]
    for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"):
        assert resnet.config_from(resnet.config_to(PRESETS[name])) == PRESETS[name]


def test_kernels_are_turned() -> None:
    ours = to_ours(resnet, FILE, CONFIG)["params"]["stage_1_block_0"]["conv_1"]["kernel"]
    theirs = FILE["resnet.encoder.stages.1.layers.0.layer.1.convolution.weight"]
    assert ours[2, 0, 1, 4] == theirs[4, 1, 2, 0]


NORM = "resnet.encoder.stages.1.layers.0.layer.1.normalization"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{NORM}.running_mean": None}, f"^missing tensor '{NORM}.running_mean'$"),
        ({f"{NORM}.running_average": np.zeros(6)}, f"^unknown tensor '{NORM}.running_average'; n"),
        ({f"{NORM}.weight": np.zeros(7)}, r"has shape \(7,\); the config makes it \(6,\)$"),
    ],
)
def test_other_files_are_refused(change: dict[str, Any], message: str) -> None:
    tensors = {k: x for k, x in (FILE | change).items() if x is not None}
    with pytest.raises(ValueError, match=message):
        to_ours(resnet, tensors, CONFIG)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_sizes": [64, 128, 256, 500]}, r"hidden_sizes=.*nearest: \(64, 128, 256, 512\)"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu': our ResNet does not have that; .* 'relu'"),
        ({"downsample_in_first_stage": True}, "downsample_in_first_stage=True"),
        ({"layer_type": "bottle"}, "unknown model.block 'bottle'"),
        ({"model_type": "regnet"}, "unknown model_type 'regnet'"),
    ],
)
def test_other_configs_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resnet.config_from(PUBLISHED | change)


@pytest.mark.parametrize(
    "change", [dict(stem="cifar"), dict(shortcut="pad"), dict(norm_eps=1e-3)], ids=str
)
def test_what_a_file_cannot_hold_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a ResNet file does not have that; nearest:"):
        resnet.config_to(dataclasses.replace(CONFIG, **change))
