"""Our loops over tokens on the files and prompts of the record."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch.run import decode
from launch.run.logits import Sampling
from launch.run.reading import Inputs
from nn.families.transformer import Config, Model
from nn.pretrained import to_ours
from tests.golden_store import Record
from tests.parity.decoders import file_of, format_of

NEW = 7  # tokens
NOTHING = -1
STOP = (3, 11, 17, 20, 29)
MODES = {
    "greedy": Sampling(temperature=0, stop=STOP),
    "penalty": Sampling(temperature=0, stop=STOP, repetition_penalty=1.7),
    "beams": Sampling(temperature=0, stop=STOP, beams=3),
    "beams_early": Sampling(
        temperature=0, stop=STOP, beams=3, length_penalty=0.4, early_stopping=True
    ),
    "beams_penalty": Sampling(temperature=0, stop=STOP, beams=2, repetition_penalty=1.3),
}


def tolerance(variant: str) -> float:
    return 0.0  # tokens


@functools.cache
def _run(config: Config, mode: str) -> Any:
    return jax.jit(functools.partial(decode.run, decode.loop_of(Model(config), NEW, MODES[mode])))


def compute(variant: str, record: Record) -> dict[str, np.ndarray]:
    """The new tokens of each row in each mode."""
    table = format_of(record)
    config = table.config_from(record.about["config"])
    params = to_ours(table, file_of(record), config)
    prompts, lengths = record.inputs["prompts"], record.inputs["lengths"]
    key = jax.random.key_data(jax.random.key(0))
    inputs = Inputs(jnp.asarray(prompts), jnp.asarray(lengths), key, jnp.arange(len(prompts)))
    found = {}
    for mode in MODES:
        view = jax.device_get(_run(config, mode)(params, inputs))
        rows = np.full((len(prompts), NEW), NOTHING, np.int32)
        for i, (start, end) in enumerate(zip(lengths, view["ends"], strict=True)):
            rows[i, : end - start] = view["tokens"][i, start:end]
        found[mode] = rows
    return found
