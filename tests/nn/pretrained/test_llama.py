"""Llama's table; that the numbers are right is what tests/parity/decoders.py checks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from nn.families import transformer
from nn.pretrained import from_ours, llama, to_ours
from tests import golden_store
from tests.parity.decoders import file_of

RECORD = golden_store.load("decoders.llama")
CONFIG = llama.config_from(RECORD.about["config"])
FILE = file_of(RECORD)

# What the published Llama 3.2 1B config.json says of the model.
SCALING = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
PUBLISHED = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": SCALING,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}


def test_published_config_is_the_preset() -> None:
    assert llama.config_from(PUBLISHED) == transformer.PRESETS["llama3.2-1b"]
    written = llama.config_to(transformer.PRESETS["llama3.2-1b"])
    assert {k: written[k] for k in PUBLISHED if k in written} == {
        k: v for k, v in PUBLISHED.items() if k in written
    }


def test_rotary_options_of_every_age() -> None:
    """`rope_parameters` and `rope_theta` with `rope_scaling`, "type" or "rope_type", or neither."""
    expected = transformer.PRESETS["llama3.2-1b"]
    rest = {k: v for k, v in PUBLISHED.items() if not k.startswith("rope_")}
    new = rest | {"rope_parameters": {"rope_theta": 500000.0, **SCALING}}
    assert llama.config_from(new) == expected
    old = PUBLISHED | {"rope_scaling": {"type": "linear", "factor": 2}}
    fields = dict(rope_scaling="linear", rope_factor=2, rope_original_length=8192)
    assert llama.config_from(old) == dataclasses.replace(expected, **fields)
    plain = dict(rope_scaling="none", rope_factor=1.0)
    for extra in ({}, {"rope_scaling": None}, {"rope_parameters": {"rope_type": "default"}}):
        assert llama.config_from(rest | extra | {"rope_theta": 500000.0}) == dataclasses.replace(
            expected, **plain
        )
    assert llama.config_from(rest) == dataclasses.replace(expected, rope_theta=10000.0, **plain)
    # Without the length of training, it is the one of the config.
    short = {k: v for k, v in SCALING.items() if k != "original_max_position_embeddings"}
    found = llama.config_from(PUBLISHED | {"rope_scaling": short})
    assert found.rope_original_length == 131072


def test_heads_are_split_as_in_the_file() -> None:
    """(out, in) with heads outermost in out; layer 2, query head 3, key head 1."""
    ours = to_ours(llama, FILE, CONFIG)["blocks"]["attention"]
    q, k, o = (FILE[f"model.layers.2.self_attn.{x}_proj.weight"] for x in "qko")
    np.testing.assert_array_equal(ours["query_kernel"][2, :, 3], q[18:24].T)
    np.testing.assert_array_equal(ours["key_kernel"][2, :, 1], k[6:12].T)
    np.testing.assert_array_equal(ours["out_kernel"][2, 3], o[:, 18:24].T)


def test_tied_heads_and_old_buffers() -> None:
    record = golden_store.load("decoders.llama_tied_llama3")
    config, file = llama.config_from(record.about["config"]), file_of(record)
    assert config.tie_embeddings and "lm_head.weight" not in file
    table = file["model.embed_tokens.weight"]
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(3)}
    ours = to_ours(llama, file | old | {"lm_head.weight": table}, config)
    assert "output" not in ours
    with pytest.raises(ValueError, match="ties it; nearest: tie_word_embeddings=false"):
        to_ours(llama, file | {"lm_head.weight": -table}, config)
    with pytest.raises(ValueError, match="^missing tensor 'lm_head.weight'$"):
        to_ours(llama, file, dataclasses.replace(config, tie_embeddings=False))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.norm.weight": None}, "^missing tensor 'model.norm.weight'$"),
        (
            {"model.layers.3.mlp.up_proj.weight": np.zeros((14, 20))},
            r"^unknown tensor 'model.layers.3.mlp.up_proj.weight'; nearest: 'model.layers.",
        ),
        (
            {"model.layers.1.self_attn.q_proj.bias": np.zeros(24)},
            r"^unknown tensor 'model.layers.1.self_attn.q_proj.bias'; nearest: 'model.layers.",
        ),
        (
            {"model.layers.1.self_attn.k_proj.weight": np.zeros((24, 20))},
            r"k_proj.weight' has shape \(24, 20\); the config makes it \(12, 20\)$",
        ),
    ],
)
def test_wrong_files(change: dict[str, np.ndarray | None], message: str) -> None:
    changed = {k: x for k, x in {**FILE, **change}.items() if x is not None}
    with pytest.raises(ValueError, match=message):
        to_ours(llama, changed, CONFIG)


def scaled(**change: object) -> dict[str, object]:
    return {"rope_scaling": SCALING | change}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "lama"}, "unknown model_type 'lama': .*; nearest: 'llama'"),
        ({"hidden_act": "sillu"}, "unknown hidden_act 'sillu': .*; nearest: 'silu'"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps='1e-5': must be of type float"),
        ({"num_key_value_heads": 3}, "model.num_kv_heads=3 does not divide .* that does: 2"),
        (scaled(rope_type="llama"), "unknown rope_type 'llama': .*; nearest: 'llama3'"),
        (scaled(rope_type="dynamic"), "unknown rope_type 'dynamic': choose from default, linear"),
        (scaled(partial_rotary_factor=0.5), "partial_rotary_factor=0.5: .*; nearest: 1.0"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_type='linear' without 'factor'"),
    ],
)
def test_wrong_configs(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        llama.config_from(PUBLISHED | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "layer"}, "norm='layer': a Llama file .*; nearest: 'rms'"),
        ({"position": "learned"}, "position='learned': .*; nearest: 'rotary'"),
        ({"windows": (4,)}, r"windows=\(4,\): .*; nearest: \(0,\)"),
        ({"norm_order": "post"}, "norm_order='post': a Llama file .*; nearest: 'pre'"),
        ({"qk_norm": "head"}, "qk_norm='head': .*; nearest: 'none'"),
        ({"logit_cap": 30.0}, "logit_cap=30.0: .*; nearest: 0.0"),
        ({"rope_dim": 2}, "rope_dim=2: .*; nearest: 6"),
        ({"unbiased": ("key",), "bias": True}, "unbiased=.'key',.: .*; nearest: "),
        ({"num_experts": 4}, "num_experts=4: .*; nearest: 0"),
        ({"activation": "silu"}, "unknown activation of Llama 'silu': .*; nearest"),
        ({"rope_scaling": "yarn"}, "unknown rope_scaling of Llama 'yarn': choose from default"),
    ],
)
def test_configs_that_are_no_llama(change: dict[str, object], message: str) -> None:
    wrong = dataclasses.replace(CONFIG, **change)
    ours = to_ours(llama, FILE, CONFIG)
    for call in (
        lambda: llama.config_to(wrong),
        lambda: to_ours(llama, FILE, wrong),
        lambda: from_ours(llama, ours, wrong),
    ):
        with pytest.raises(ValueError, match=message):
            call()
