"""Every table of an encoder-decoder on every recorded file in its format."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import numpy as np
import pytest

from nn.families import seq2seq_transformer
from nn.families.seq2seq_transformer import PRESETS, Config
from nn.parallel import unbox
from nn.pretrained import Format, find, from_ours, to_ours
from tests import golden_store
from tests.parity.decoders import file_of, format_of

RECORDS = [name for name in golden_store.names() if name.startswith("encoder_decoders.")]


def opened(name: str) -> tuple[Format, Config, dict[str, np.ndarray]]:
    """Format, config and tensors of a record."""
    record = golden_store.load(name)
    table = format_of(record)
    return table, table.config_from(record.about["config"]), file_of(record)


@pytest.mark.parametrize("name", RECORDS)
def test_load_and_save_is_the_identity(name: str) -> None:
    table, config, file = opened(name)
    ours = to_ours(table, file, config)
    saved = from_ours(table, ours, config)
    assert saved.keys() == file.keys()
    for tensor, x in file.items():
        np.testing.assert_array_equal(saved[tensor], x, err_msg=tensor, strict=True)
    assert table.config_from(json.loads(json.dumps(table.config_to(config)))) == config
    model = seq2seq_transformer.Model(config)
    made = jax.eval_shape(model.init, jax.random.key(0), *seq2seq_transformer.example(config, 1))
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), unbox(made)["params"])
    assert jax.tree.map(lambda x: (x.shape, x.dtype), ours) == shapes


@pytest.mark.parametrize("preset", sorted(PRESETS.keys() - {"transformer-base", "transformer-big"}))
def test_presets_can_be_written(preset: str) -> None:
    kind = {"opus": "marian", "bart": "bart", "t5": "t5"}[preset.partition("-")[0]]
    config, table = PRESETS[preset], find(kind)
    back = table.config_from(table.config_to(config))
    assert table.table(back).shapes() == table.table(config).shapes()
    assert table.config_from(table.config_to(back)) == back


def test_published_files_of_bart_and_marian_may_hold_more_and_less() -> None:
    table, config, file = opened("encoder_decoders.marian")
    whole = to_ours(table, file, config)
    shared = file["model.shared.weight"]
    more = dict.fromkeys(("model.encoder.embed_tokens.weight", "lm_head.weight"), shared)
    more["model.decoder.embed_positions.weight"] = np.zeros((15, 12), np.float32)
    jax.tree.map(np.testing.assert_array_equal, to_ours(table, file | more, config), whole)
    with pytest.raises(ValueError, match="'lm_head.weight' differs from 'model.shared.weight'"):
        to_ours(table, file | {"lm_head.weight": shared + 1}, config)
    headless = {k.removeprefix("model."): x for k, x in file.items() if k != "final_logits_bias"}
    bare = to_ours(table, headless, config)
    assert not bare.pop("head_bias").any()
    assert whole.pop("head_bias").any()
    jax.tree.map(np.testing.assert_array_equal, bare, whole)


def test_the_head_of_version_1_1_is_its_own() -> None:
    """Whatever the config says of the tie; and equal to the table where the file has none."""
    table, config, file = opened("encoder_decoders.t5_gated_untied")
    assert not config.tie_embeddings
    assert not config.scale_head
    raw = golden_store.load("encoder_decoders.t5_gated_untied").about["config"]
    assert raw["tie_word_embeddings"]
    assert not raw["scale_decoder_outputs"]
    older = {k: v for k, v in raw.items() if k != "scale_decoder_outputs"}
    assert table.config_from(older | {"tie_word_embeddings": False}) == config
    assert table.config_from(older).scale_head
    head = file.pop("lm_head.weight")
    ours = to_ours(table, file, config)
    np.testing.assert_array_equal(ours["output"]["kernel"], file["shared.weight"].T)
    assert (ours["output"]["kernel"] != head.T).any()


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("bart", {"normalize_before": True}, "normalize_before=True: .* nearest: False"),
        ("bart", {"encoder_layerdrop": 0.1}, "encoder_layerdrop=0.1"),
        ("bart", {"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        ("bart", {"static_position_embeddings": True}, "static_position_embeddings=True"),
        ("bart", {"activation_function": "gelu_fast"}, "unknown activation_function 'gelu_fast'"),
        ("marian", {"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings"),
        ("marian", {"decoder_vocab_size": 5}, "decoder_vocab_size=5"),
        ("t5", {"feed_forward_proj": "gated-swish"}, "unknown feed_forward_proj 'gated-swish'"),
        ("t5", {"model_type": "mt5"}, "unknown model_type 'mt5'"),
    ],
)
def test_what_we_cannot_express_is_refused(kind: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find(kind).config_from(change)


@pytest.mark.parametrize(
    ("preset", "change", "message"),
    [
        ("bart-base", {"position": "relative"}, "position='relative': a BART file"),
        ("bart-base", {"head_bias": False}, "head_bias=False: a BART file"),
        ("opus-mt-en-de", {"norm_order": "pre"}, "norm_order='pre': a Marian file"),
        ("opus-mt-en-de", {"head_dim": 32}, "head_dim=32: a Marian file"),
        ("t5-small", {"scale_head": False}, "scale_head=False: a T5 file"),
        ("t5-small", {"decoder_heads": 4}, "decoder_heads=4: a T5 file"),
        ("t5-small", {"activation": "silu2"}, "unknown activation"),
    ],
)
def test_what_a_file_cannot_hold_is_refused(
    preset: str, change: dict[str, Any], message: str
) -> None:
    kind = {"opus": "marian", "bart": "bart", "t5": "t5"}[preset.partition("-")[0]]
    with pytest.raises(ValueError, match=message):
        find(kind).table(dataclasses.replace(PRESETS[preset], **change))
