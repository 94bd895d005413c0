"""Our encoder-decoder on the files of the record: loaded, differentiated, saved again."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from nn import losses
from nn.families.seq2seq_transformer import Model
from nn.pretrained import from_ours, to_ours
from tests.golden_store import Record
from tests.parity.decoders import file_of, format_of

WITHOUT_GRADIENT = ("final_logits_bias", "k_proj.bias")  # of transformers, and of any


def tolerance(variant: str) -> dict[str, float]:
    return {"": 1e-5, "grad/": 2e-5}


def compute(variant: str, record: Record) -> dict[str, np.ndarray]:
    """Logits, loss, and its gradient for every tensor under the file's name."""
    table = format_of(record)
    config = table.config_from(record.about["config"])
    params = to_ours(table, file_of(record), config)
    names = ("inputs", "decoder_inputs", "mask", "targets")
    inputs, decoder_inputs, mask, targets = (jnp.asarray(record.inputs[name]) for name in names)

    def loss(params: dict[str, object]) -> tuple[jax.Array, jax.Array]:
        model, variables = Model(config, train=True), {"params": params}
        logits = model.apply(variables, inputs, decoder_inputs, mask)
        return losses.softmax_cross_entropy(logits, targets).mean(), logits

    (value, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    saved = from_ours(table, gradients, config)
    wanted = {key.removeprefix("grad/") for key in record.outputs}
    assert saved.keys() - wanted == {name for name in saved if name.endswith(WITHOUT_GRADIENT)}
    learned = {name: x for name, x in saved.items() if name in wanted}
    return {
        "loss": np.asarray(value),
        "logits": np.asarray(logits),
        **{f"grad/{name}": x for name, x in learned.items()},
    }
