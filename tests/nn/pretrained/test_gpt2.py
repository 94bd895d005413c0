"""GPT-2's table; that the numbers are right is what tests/parity/decoders.py checks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from nn.families import transformer
from nn.pretrained import from_ours, gpt2, to_ours
from tests import golden_store
from tests.parity.decoders import file_of

RECORD = golden_store.load("decoders.gpt2")
CONFIG = gpt2.config_from(RECORD.about["config"])
FILE = file_of(RECORD)

# What the published 124M config.json says of the model.
PUBLISHED = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "summary_type": "cls_index",
    "vocab_size": 50257,
}


def same(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert got.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_array_equal(got[name], x, err_msg=name, strict=True)


def test_published_config_is_the_preset() -> None:
    preset = dataclasses.replace(transformer.PRESETS["gpt2"], dropout=0.1)
    assert gpt2.config_from(PUBLISHED) == preset
    written = gpt2.config_to(preset)
    assert {k: written[k] for k in PUBLISHED if k in written} == {
        k: v for k, v in PUBLISHED.items() if k in written
    }


def test_files_as_published() -> None:
    """Without the prefix, with the masks and with a copy of the tied head; half precision stays."""
    bare = {k.removeprefix("transformer."): x.astype(np.float16) for k, x in FILE.items()}
    masks = {
        f"h.{i}.attn.{b}": np.ones((1, 1, 11, 11)) for i in (0, 1) for b in ("bias", "masked_bias")
    }
    copy = {"lm_head.weight": bare["wte.weight"]}
    ours = to_ours(gpt2, bare | masks | copy, CONFIG)
    assert ours["blocks"]["attention"]["key_kernel"].dtype == np.float16
    same(from_ours(gpt2, ours, CONFIG), {k: x.astype(np.float16) for k, x in FILE.items()})
    with pytest.raises(ValueError, match="'lm_head.weight' differs from 'wte.weight', to which"):
        to_ours(gpt2, bare | {"lm_head.weight": copy["lm_head.weight"] + 1}, CONFIG)


def test_where_the_fused_kernel_goes() -> None:
    """Queries, keys and values in that order, heads within each; layer 1, head 2."""
    ours = to_ours(gpt2, FILE, CONFIG)["blocks"]["attention"]
    fused = FILE["transformer.h.1.attn.c_attn.weight"]
    for i, name in enumerate(("query", "key", "value")):
        own = fused[:, 12 * i + 8 : 12 * i + 12]
        np.testing.assert_array_equal(ours[f"{name}_kernel"][1, :, 2], own)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"transformer.h.1.ln_1.bias": None},
            r"^missing tensor 'transformer.h.1.ln_1.bias'$",
        ),
        (
            {"transformer.h.1.ln_1.bias": None, "transformer.h.1.ln1.bias": np.zeros(12)},
            r"^missing tensor 'transformer.h.1.ln_1.bias'; nearest: 'transformer.h.1.ln1.bias'$",
        ),
        (
            {"transformer.h.2.ln_1.bias": np.zeros(12), "transformer.h.2.x": np.zeros(12)},
            r"^unknown tensor 'transformer.h.2.ln_1.bias' and 1 more; nearest: 'transformer.h.\d",
        ),
        (
            {"transformer.h.1.mlp.c_fc.weight": np.zeros((20, 12))},
            r"^tensor 'transformer.h.1.mlp.c_fc.weight' has shape \(20, 12\); .* it \(12, 20\)$",
        ),
        (
            {"transformer.h.0.attn.c_attn.weight": np.zeros((12, 24))},
            r"^tensor 'transformer.h.0.attn.c_attn.weight' .* \(12, 24\); .* it \(12, 36\)$",
        ),
    ],
)
def test_wrong_files(change: dict[str, np.ndarray | None], message: str) -> None:
    changed = {k: x for k, x in {**FILE, **change}.items() if x is not None}
    with pytest.raises(ValueError, match=message):
        to_ours(gpt2, changed, CONFIG)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt"}, "unknown model_type 'gpt': choose from gpt2; nearest: 'gpt2'"),
        ({"activation_function": "gelu_nwe"}, "activation_function .*; nearest: 'gelu_new'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "idx=True: our .*; nearest: False"),
        ({"scale_attn_weights": False}, "scale_attn_weights=False: .*; nearest: True"),
        ({"add_cross_attention": True}, "add_cross_attention=True: .*; nearest: False"),
        ({"embd_pdrop": 0.2}, "embd_pdrop=0.2: .*; nearest: 0.1"),
        ({"n_layer": "12"}, "n_layer='12': must be of type int"),
        ({"n_head": True}, "n_head=True: must be of type int"),
        ({"n_head": 7}, "model.num_heads=7 does not divide model.dim=768; nearest .*: 6"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: quantised"),
    ],
)
def test_wrong_configs(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        gpt2.config_from(PUBLISHED | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_kv_heads": 1}, "num_kv_heads=1: a GPT-2 file .*; nearest: 3"),
        ({"head_dim": 5}, "head_dim=5: a GPT-2 file .*; nearest: 4"),
        ({"parallel": "one_norm"}, "parallel='one_norm': .*; nearest: 'none'"),
        ({"norm": "rms"}, "norm='rms': .*; nearest: 'layer'"),
        ({"position": "rotary"}, "position='rotary': .*; nearest: 'learned'"),
        ({"bias": False}, "bias=False: .*; nearest: True"),
        ({"windows": (4,)}, r"windows=\(4,\): .*; nearest: \(0,\)"),
        ({"activation": "swiglu"}, "unknown activation of GPT-2 'swiglu': choose from gelu"),
    ],
)
def test_configs_that_are_no_gpt2(change: dict[str, object], message: str) -> None:
    wrong = dataclasses.replace(CONFIG, **change)
    ours = to_ours(gpt2, FILE, CONFIG)
    for call in (
        lambda: gpt2.config_to(wrong),
        lambda: to_ours(gpt2, FILE, wrong),
        lambda: from_ours(gpt2, ours, wrong),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_wrong_parameters() -> None:
    ours = to_ours(gpt2, FILE, CONFIG)
    with pytest.raises(ValueError, match="^missing parameter 'final_norm/bias'$"):
        from_ours(gpt2, ours | {"final_norm": {"scale": ours["final_norm"]["scale"]}}, CONFIG)
    with pytest.raises(ValueError, match="^unknown parameter 'output/kernel'"):
        from_ours(gpt2, ours | {"output": {"kernel": np.zeros((12, 37))}}, CONFIG)
    more = dataclasses.replace(CONFIG, vocab_size=38)
    with pytest.raises(ValueError, match=r"'embed/embedding' has shape \(37, 12\); .* \(38, 12\)$"):
        from_ours(gpt2, ours, more)
    more = dataclasses.replace(CONFIG, num_layers=3)
    with pytest.raises(
        ValueError, match=r"^parameter 'blocks/.* has shape \(2, 12\); .* \(3, 12\)$"
    ):
        from_ours(gpt2, ours, more)
