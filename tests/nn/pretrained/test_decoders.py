"""What every table of a decoder must do, on every recorded file in its format."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from nn.families import transformer
from nn.parallel import unbox
from nn.pretrained import Format, from_ours, to_ours
from tests import golden_store
from tests.parity.decoders import file_of, format_of

RECORDS = [name for name in golden_store.names() if name.startswith("decoders.")]


def opened(name: str) -> tuple[Format, transformer.Config, dict[str, np.ndarray]]:
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
    model = transformer.Model(config)
    made = jax.eval_shape(model.init, jax.random.key(0), *transformer.example(config, 1))
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), unbox(made)["params"])
    ours = to_ours(table, file, config)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), ours) == shapes
