"""What every table of a decoder must do, on every recorded file in its format."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from nn.families import transformer
from nn.parallel import unbox
from nn.pretrained import Format, find, from_ours, to_ours
from nn.pretrained.table import flatten
from tests import golden_store
from tests.parity.decoders import file_of, format_of

# The beginning of a preset's name -> the model_type of its files.
TYPES = {
    "gpt2": "gpt2",
    "gpt-neo-": "gpt_neo",
    "gpt-neox": "gpt_neox",
    "gpt-j": "gptj",
    "opt": "opt",
    "llama": "llama",
    "mistral": "mistral",
    "mixtral": "mixtral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "olmo2": "olmo2",
}
RECORDS = [name for name in golden_store.names() if name.startswith("decoders.")]


def opened(name: str) -> tuple[Format, transformer.Config, dict[str, np.ndarray]]:
    """Format, config and tensors of a record."""
    record = golden_store.load(name)
    table = format_of(record)
    return table, table.config_from(record.about["config"]), file_of(record)


@pytest.mark.parametrize(("beginning", "model_type"), [*TYPES.items(), ("gpt", "openai-gpt")])
def test_presets_can_be_written(beginning: str, model_type: str) -> None:
    """Their config.json says all of them, and the table has every parameter."""
    exact = beginning == "gpt"
    for name, config in transformer.PRESETS.items():
        if name == beginning or (name.startswith(beginning) and not exact):
            again = find(model_type)
            assert again.config_from(again.config_to(config)) == config, name
            shapes = again.table(config).shapes()
            made = jax.eval_shape(
                transformer.Model(config).init,
                jax.random.key(0),
                *transformer.example(config, 1),
            )
            ours = flatten(unbox(made)["params"])
            assert {path: x.shape for path, x in ours.items()} == shapes, name


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
    model = transformer.Model(config)
    made = jax.eval_shape(model.init, jax.random.key(0), *transformer.example(config, 1))
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), unbox(made)["params"])
    ours = to_ours(table, file, config)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), ours) == shapes
