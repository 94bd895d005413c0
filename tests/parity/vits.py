"""Our vision transformers on the files of the record: loaded, differentiated, saved again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nn.families.vit import Config, Model
from nn.pretrained import Format, find, from_ours, to_ours
from tests.golden_store import Record


def tolerance(variant: str) -> dict[str, float]:
    return {"": 1e-5, "grad/": 2e-5}


def settled(gradients: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """With 0 for gradients that are nothing but rounding: those of key biases, which cancel."""
    least = 1e-5 * max(np.abs(x).max(initial=0.0) for x in gradients.values())
    return {k: x * (np.abs(x).max(initial=0.0) > least) for k, x in gradients.items()}


def format_of(record: Record) -> Format:
    return find(record.about["config"]["model_type"])


def file_of(record: Record) -> dict[str, np.ndarray]:
    """The tensors of the published file."""
    prefix = "file/"
    return {k.removeprefix(prefix): x for k, x in record.inputs.items() if k.startswith(prefix)}


def apply(
    config: Config, params: Any, inputs: dict[str, Any], dtype: Any = jnp.float32
) -> tuple[jax.Array, jax.Array]:
    """Final states and output."""
    named = {"shuffle": "shuffle_BN", "masked": "masked_BN"}
    options = {ours: jnp.asarray(inputs[key]) for key, ours in named.items() if key in inputs}
    output, sown = Model(config, dtype).apply(
        {"params": params}, jnp.asarray(inputs["images"]), **options, mutable=["intermediates"]
    )
    return sown["intermediates"]["states"][0], output


def compute(variant: str, record: Record) -> dict[str, np.ndarray]:
    """States, output, loss, and its gradient for every tensor under the file's name."""
    table = format_of(record)
    config = table.config_from(record.about["config"])
    params = to_ours(table, file_of(record), config)
    given = record.inputs

    def loss(params: Any) -> tuple[jax.Array, Any]:
        states, output = apply(config, params, dict(given))
        pairs = ((states, given["of_states"]), (output, given["of_output"]))
        return sum(jnp.sum(x * x * weight) for x, weight in pairs), (states, output)

    (value, (states, output)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    saved = from_ours(table, gradients, config)
    fixed = table.table(config).constants
    found = {"loss": value, "states": states, "output": output}
    # Constants are no parameters of ours.
    saved |= {name: np.zeros_like(x) for name, x in fixed.items()}
    found |= {f"grad/{name}": x for name, x in settled(saved).items()}
    return {key: np.asarray(x) for key, x in found.items()}
