"""Tables of encoders: every recorded file both ways, files as they are published, what is refused.

That the numbers are right is what tests/parity/encoders.py checks.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from nn.families import bert as family
from nn.parallel import unbox
from nn.pretrained import Format, bert, electra, find, from_ours, modernbert, roberta, to_ours
from tests import golden_store
from tests.parity.encoders import file_of, outputs

RECORDS = [name for name in golden_store.names() if name.startswith("encoders.")]


def opened(name: str) -> tuple[Format, family.Config, dict[str, np.ndarray]]:
    """Format, config and tensors of a record."""
    record = golden_store.load(f"encoders.{name}")
    format_ = find(record.about["config"]["model_type"])
    return format_, format_.config_from(record.about["config"]), file_of(record)


def same(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert got.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_array_equal(got[name], x, err_msg=name, strict=True)
        assert got[name].flags.c_contiguous


@pytest.mark.parametrize("name", [name.partition(".")[2] for name in RECORDS])
def test_load_and_save_is_the_identity(name: str) -> None:
    format_, config, file = opened(name)
    ours = to_ours(format_, file, config)
    same(from_ours(format_, ours, config), file)
    assert format_.config_from(json.loads(json.dumps(format_.config_to(config)))) == config
    made = jax.eval_shape(family.Model(config).init, jax.random.key(0), *family.example(config, 1))
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), unbox(made)["params"])
    assert jax.tree.map(lambda x: (x.shape, x.dtype), ours) == shapes


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_bfloat16_stays_bfloat16_and_close(name: str) -> None:
    format_, config, file = opened(name)
    record = golden_store.load(f"encoders.{name}")
    half = {key: x.astype(ml_dtypes.bfloat16) for key, x in file.items()}
    ours = to_ours(format_, half, config)
    assert {x.dtype for x in jax.tree.leaves(ours)} == {np.dtype(ml_dtypes.bfloat16)}
    same(from_ours(format_, ours, config), half)
    given = {k: jnp.asarray(x) for k, x in record.inputs.items() if not k.startswith("file/")}
    logits = outputs(config, ours, given, jnp.bfloat16)["logits"]
    expected = record.outputs["logits"]
    assert np.abs(np.asarray(logits, np.float32) - expected).max() < 0.05 * np.abs(expected).max()


def test_files_as_published() -> None:
    """gamma and beta, buffers, copies of what is tied, heads that the config has not."""
    _, config, file = opened("bert")
    greek = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    old = dict(file)
    for new, name in greek.items():
        old = {k.replace(new, name): x for k, x in old.items()}
    assert old.keys() != file.keys()
    word = "bert.embeddings.word_embeddings.weight"
    more = {
        "bert.embeddings.position_ids": np.arange(13)[None],
        "cls.predictions.decoder.weight": file[word],
        "cls.predictions.decoder.bias": file["cls.predictions.bias"],
    }
    same(from_ours(bert, to_ours(bert, old | more, config), config), file)
    with pytest.raises(
        ValueError, match=r"'cls.predictions.decoder.weight' differs from 'bert.emb"
    ):
        to_ours(bert, file | {"cls.predictions.decoder.weight": file[word] + 1}, config)

    masked = dataclasses.replace(config, head="masked_token")
    kept = {k: x for k, x in file.items() if "pooler" not in k and "seq_rel" not in k}
    same(from_ours(bert, to_ours(bert, old | more, masked), masked), kept)
    base = dataclasses.replace(config, head="pooled")
    alone = {k.removeprefix("bert."): x for k, x in file.items() if k.startswith("bert.")}
    for given in (old | more, alone, {f"bert.{k}": x for k, x in alone.items()}):
        same(from_ours(bert, to_ours(bert, given, base), base), alone)
    with pytest.raises(ValueError, match=r"missing tensor 'cls.predictions.bias' and 4 more"):
        to_ours(bert, alone, masked)


def test_a_file_without_heads_in_other_formats() -> None:
    for name, base, head in (
        ("roberta_class", "roberta.", "none"),
        ("distilbert", "distilbert.", "none"),
        ("electra_generator", "electra.", "none"),
        ("modernbert", "model.", "none"),
    ):
        format_, config, file = opened(name)
        config = dataclasses.replace(config, head=head)
        if name == "roberta_class":  # its encoder alone has a pooler
            with pytest.raises(ValueError, match="unknown head of RoBERTa 'none'"):
                format_.config_to(config)
            continue
        alone = {k.removeprefix(base): x for k, x in file.items() if k.startswith(base)}
        for given in (file, alone):
            same(from_ours(format_, to_ours(format_, given, config), config), alone)


def test_where_fused_tensors_go() -> None:
    """Queries, keys and values in that order; the half that the activation takes first."""
    _, config, file = opened("modernbert")
    ours = to_ours(modernbert, file, config)["blocks"]
    fused = file["model.layers.1.attn.Wqkv.weight"].T
    for i, name in enumerate(("query", "key", "value")):
        own = fused[:, 12 * i + 8 : 12 * i + 12]  # the third head
        np.testing.assert_array_equal(ours["attention"][f"{name}_kernel"][1, :, 2], own)
    gate = file["model.layers.1.mlp.Wi.weight"][:14].T
    np.testing.assert_array_equal(ours["mlp"]["gate"]["kernel"][1], gate)
    assert (ours["attention_norm"]["scale"][0] == 1).all()  # not in the file, and never used


# What the published config.json says of the model, and the preset that is the same.
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "bert-base": (
        "masked_token",
        {
            "model_type": "bert",
            "architectures": ["BertForMaskedLM"],
            "gradient_checkpointing": False,
        }
        | {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "position_embedding_type": "absolute"},
    ),
    "roberta-base": (
        "masked_token",
        {"model_type": "roberta", "architectures": ["RobertaForMaskedLM"], "layer_norm_eps": 1e-5}
        | {"max_position_embeddings": 514, "type_vocab_size": 1, "vocab_size": 50265},
    ),
    "distilbert-base": (
        "masked_token",
        {
            "model_type": "distilbert",
            "architectures": ["DistilBertForMaskedLM"],
            "tie_weights_": True,
        },
    ),
    "electra-small": (
        "replaced_token",
        {"model_type": "electra", "architectures": ["ElectraForPreTraining"]},
    ),
    "modernbert-base": (
        "masked_token",
        {"model_type": "modernbert", "architectures": ["ModernBertForMaskedLM"]}
        | {"classifier_pooling": "mean", "global_attn_every_n_layers": 3, "local_attention": 128}
        | {"global_rope_theta": 160000.0, "local_rope_theta": 10000.0, "layer_norm_eps": 1e-5},
    ),
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_published_config_is_the_preset(preset: str) -> None:
    head, raw = PUBLISHED[preset]
    format_ = find(raw["model_type"])
    config = dataclasses.replace(family.PRESETS[preset], head=head)
    assert format_.config_from(raw) == config
    bare = dataclasses.replace(config, pad_token=-1)  # positions of RoBERTa hang on it
    for kept in (config,) if config.skip_padding else (config, bare):
        assert format_.config_from(json.loads(json.dumps(format_.config_to(kept)))) == kept


@pytest.mark.parametrize(
    ("format_", "change", "message"),
    [
        (bert, {"architectures": ["BertForTokenClassification"]}, "architecture 'BertForTokenC.*"),
        (bert, {"is_decoder": True}, "is_decoder=True: our encoder .*; nearest: False"),
        (bert, {"add_cross_attention": True}, "add_cross_attention=True: .*; nearest: False"),
        (bert, {"position_embedding_type": "relative_key"}, "type='relative_key': our encoder"),
        (bert, {"tie_word_embeddings": False}, "tie_word_embeddings=False: .*; nearest: True"),
        (bert, {"classifier_dropout": 0.3}, "classifier_dropout=0.3: .*; nearest: 0.1"),
        (bert, {"hidden_act": "gelu_nwe"}, "unknown hidden_act 'gelu_nwe'.*; nearest: 'gelu_new'"),
        (bert, {"num_attention_heads": 7}, "num_heads=7 does not divide model.dim=768"),
        (roberta, {"pad_token_id": None}, "model.position_offset=0 leaves none; nearest: 1"),
        (bert, {"pad_token_id": "0"}, "pad_token_id='0': must be of type int"),
        (electra, {"model_type": "bert"}, "unknown model_type 'bert': choose from electra"),
        (modernbert, {"mlp_dropout": 0.1}, "mlp_dropout=0.1: our encoder .*; nearest: 0.0"),
        (modernbert, {"decoder_bias": False}, "decoder_bias=False: .*; nearest: True"),
        (modernbert, {"mlp_bias": True}, "mlp_bias=True: .*; nearest: False"),
        (
            modernbert,
            {"layer_types": ["full_attention"]},
            "num_hidden_layers=22: layer_types .*: 1",
        ),
        (
            modernbert,
            {"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 2.0}}},
            "rope_type='yarn': our encoder .*; nearest: 'default'",
        ),
    ],
)
def test_wrong_configs(format_: Format, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        format_.config_from(change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("bert", {"norm_order": "pre"}, "norm_order='pre': a BERT file .*; nearest: 'post'"),
        ("bert", {"windows": (4,)}, r"windows=\(4,\): a BERT file .*; nearest: \(0,\)"),
        ("bert", {"embed_dim": 8}, "embed_dim=8: a BERT file .*; nearest: 12"),
        ("bert", {"head": "replaced_token"}, "unknown head of BERT 'replaced_token'"),
        ("bert", {"head_activation": "relu"}, "head_activation='relu': .*; nearest: 'gelu'"),
        ("roberta", {"pad_token": 4}, "pad_token=4: a RoBERTa file .*; nearest: 1"),
        ("electra", {"head_activation": "gelu"}, "head_activation='gelu': .*; nearest: 'relu'"),
        ("distilbert", {"token_types": 2}, "token_types=2: a DistilBERT file .*; nearest: 0"),
        ("modernbert", {"dropout": 0.1}, "dropout=0.1: a ModernBERT file .*; nearest: 0.0"),
        ("modernbert", {"windows": (0, 3, 4)}, r"windows=\(0, 3, 4\): .*; nearest: \(0, 4, 4\)"),
    ],
)
def test_configs_that_a_format_cannot_hold(name: str, change: dict[str, Any], message: str) -> None:
    format_, config, file = opened(name)
    wrong = dataclasses.replace(config, **change)
    for call in (lambda: format_.config_to(wrong), lambda: to_ours(format_, file, wrong)):
        with pytest.raises(ValueError, match=message):
            call()
