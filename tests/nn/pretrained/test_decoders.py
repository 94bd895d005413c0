"""What every table of a decoder must do, on every recorded file in its format."""

from __future__ import annotations

import importlib
import json
from typing import Any

import jax
import numpy as np
import pytest

from nn.families import transformer
from nn.parallel import unbox
from tests import golden_store
from tests.parity.decoders import file_of

RECORDS = [name for name in golden_store.names() if name.startswith("decoders.")]


def opened(name: str) -> tuple[Any, transformer.Config, dict[str, np.ndarray]]:
    """Table, config and tensors of a record, decoders.FORMAT or decoders.FORMAT_WHAT."""
    record = golden_store.load(name)
    table = importlib.import_module(f"nn.pretrained.{name.split('.')[1].split('_')[0]}")
    return table, table.config_from(record.about["config"]), file_of(record)


@pytest.mark.parametrize("name", RECORDS)
def test_load_and_save_is_the_identity(name: str) -> None:
    table, config, file = opened(name)
    saved = table.from_ours(table.to_ours(file, config), config)
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
    ours = table.to_ours(file, config)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), ours) == shapes
