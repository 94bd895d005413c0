"""Mixtral's table; that the numbers are right is what tests/parity/decoders.py checks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from nn.families import transformer
from nn.pretrained import mixtral, to_ours
from tests import golden_store
from tests.parity.decoders import file_of

RECORD = golden_store.load("decoders.mixtral")
CONFIG = mixtral.config_from(RECORD.about["config"])
FILE = file_of(RECORD)

# What the published Mixtral 8x7B config.json says of the model.
PUBLISHED = {
    "architectures": ["MixtralForCausalLM"],
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mixtral",
    "num_attention_heads": 32,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "output_router_logits": False,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.02,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}


def test_published_config_is_the_preset() -> None:
    assert mixtral.config_from(PUBLISHED) == transformer.PRESETS["mixtral-8x7b"]
    written = mixtral.config_to(transformer.PRESETS["mixtral-8x7b"])
    assert {k: written[k] for k in PUBLISHED} == PUBLISHED


def test_experts_are_stacked_in_order() -> None:
    """Layer 1, expert 3: w1 is the gate, w2 goes down, w3 goes up; (out, in) in the file."""
    ours = to_ours(mixtral, FILE, CONFIG)["blocks"]["moe"]
    for name, own in (("w1", "gate"), ("w2", "down"), ("w3", "up")):
        theirs = FILE[f"model.layers.1.block_sparse_moe.experts.3.{name}.weight"]
        np.testing.assert_array_equal(ours[f"{own}_kernel"][1, 3], theirs.T)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ("model.layers.1.block_sparse_moe.gate.weight", "^missing tensor .*gate.weight'$"),
        ("model.layers.0.block_sparse_moe.experts.4.w2.weight", "^missing tensor .*4.w2.weight'$"),
    ],
)
def test_files_with_a_hole(tensor: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_ours(mixtral, {k: x for k, x in FILE.items() if k != tensor}, CONFIG)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mistral"}, "unknown model_type 'mistral': .*; nearest: 'mixtral'"),
        ({"router_jitter_noise": 0.1}, "router_jitter_noise=0.1: .*; nearest: 0.0"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "unknown rope_type 'yarn'"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_type='linear' without 'factor'"),
        ({"num_local_experts": "8"}, "num_local_experts='8': must be of type int"),
    ],
)
def test_wrong_configs(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mixtral.config_from(PUBLISHED | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": 0}, "num_experts=0: a Mixtral file has some; nearest: model_type"),
        ({"router_scores": "sigmoid"}, "router_scores='sigmoid': .*; nearest: 'softmax'"),
        ({"shared_experts": 1}, "shared_experts=1: .*; nearest: 0"),
        ({"norm": "layer"}, "norm='layer': .*; nearest: 'rms'"),
        ({"bias": True}, "bias=True: .*; nearest: False"),
    ],
)
def test_configs_that_are_no_mixtral(change: dict[str, object], message: str) -> None:
    wrong = dataclasses.replace(CONFIG, **change)
    for call in (lambda: mixtral.config_to(wrong), lambda: to_ours(mixtral, FILE, wrong)):
        with pytest.raises(ValueError, match=message):
            call()
