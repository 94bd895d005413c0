"""Whisper's files: what is a constant in them, what they cannot hold, older names."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from nn.families import whisper
from nn.parallel import unbox
from nn.pretrained import from_ours, to_ours
from nn.pretrained import whisper as table
from tests import golden_store
from tests.parity.whispers import file_of

RECORDS = [name for name in golden_store.names() if name.startswith("whispers.")]
POSITIONS = "model.encoder.embed_positions.weight"


def opened(name: str) -> tuple[whisper.Config, dict[str, np.ndarray]]:
    record = golden_store.load(name)
    return table.config_from(record.about["config"]), file_of(record)


@pytest.mark.parametrize("name", RECORDS)
def test_load_and_save_is_the_identity(name: str) -> None:
    config, file = opened(name)
    saved = from_ours(table, to_ours(table, file, config), config)
    assert saved.keys() == file.keys()
    for tensor, x in file.items():
        if tensor == POSITIONS:  # sines of another library
            np.testing.assert_allclose(saved[tensor], x, rtol=0, atol=2e-7, strict=True)
        else:
            np.testing.assert_array_equal(saved[tensor], x, err_msg=tensor, strict=True)
        assert saved[tensor].flags.c_contiguous
    assert table.config_from(json.loads(json.dumps(table.config_to(config)))) == config


@pytest.mark.parametrize("name", RECORDS)
def test_parameters_are_those_of_the_model(name: str) -> None:
    config, file = opened(name)
    model = whisper.Model(config)
    made = jax.eval_shape(model.init, jax.random.key(0), *whisper.example(config, 1))
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), unbox(made)["params"])
    ours = to_ours(table, file, config)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), ours) == shapes


def test_fixed_positions_are_checked_and_may_be_left_out() -> None:
    config, file = opened(RECORDS[0])
    whole = jax.tree.leaves(to_ours(table, file, config))
    without = {name: x for name, x in file.items() if name != POSITIONS}
    for a, b in zip(whole, jax.tree.leaves(to_ours(table, without, config)), strict=True):
        np.testing.assert_array_equal(a, b)
    to_ours(table, file | {POSITIONS: file[POSITIONS].astype(np.float16)}, config)
    with pytest.raises(ValueError, match=r"embed_positions.weight' is 1.0e-02 off the constant"):
        to_ours(table, file | {POSITIONS: file[POSITIONS] + np.float32(0.01)}, config)
    with pytest.raises(ValueError, match=r"embed_positions.weight' has shape \(10, 12\)"):
        to_ours(table, file | {POSITIONS: file[POSITIONS][1:]}, config)


def test_older_names_and_a_stored_tied_head() -> None:
    config, file = opened("whispers.whisper")
    tokens = "model.decoder.embed_tokens.weight"
    to_ours(table, file | {"proj_out.weight": file[tokens]}, config)
    with pytest.raises(ValueError, match=r"'proj_out.weight' differs from"):
        to_ours(table, file | {"proj_out.weight": file[tokens] + 1}, config)
    bare = {name.removeprefix("model."): x for name, x in file.items()}
    for a, b in zip(
        *(jax.tree.leaves(to_ours(table, x, config)) for x in (file, bare)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "key, value",
    {
        "scale_embedding": True,
        "encoder_layerdrop": 0.1,
        "apply_spec_augment": True,
        "use_weighted_layer_sum": True,
        "activation_function": "gelu_10",
        "d_model": "384",
    }.items(),
)
def test_what_we_cannot_express_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key):
        table.config_from({key: value})


def test_a_norm_that_the_format_cannot_say_is_refused() -> None:
    with pytest.raises(ValueError, match=r"norm_eps=0\.1: a Whisper file does not have that"):
        table.config_to(whisper.Config(norm_eps=0.1))
