"""The objective of encoder-decoders against plain sums over the logits."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn import losses, parallel
from nn.families import seq2seq_transformer
from nn.objectives import sequence_to_sequence
from tests.batches import sequence_to_sequence as batches

CONFIG = dataclasses.replace(seq2seq_transformer.tiny(), encoder_layers=1, decoder_layers=1)
MODEL = seq2seq_transformer.Model(CONFIG)


def whole() -> tuple[Any, dict[str, jax.Array], jax.Array]:
    """Parameters; a batch without documents, the third row of which is filler; its logits."""
    given = batches.batch(seq2seq_transformer, CONFIG, 5)
    batch = {n: jnp.asarray(given[n]) for n in ("inputs", "decoder_inputs", "targets", "mask")}
    batch["input_segments"] = jnp.asarray(given["input_segments"] > 0, jnp.int32)
    batch["mask"] = batch["mask"].at[2].set(0)
    made = MODEL.init(jax.random.key(0), batch["inputs"], batch["decoder_inputs"])
    params = {"params": parallel.unbox(made)["params"]}
    logits = MODEL.apply(params, batch["inputs"], batch["decoder_inputs"], batch["input_segments"])
    return params, batch, jnp.asarray(logits)


def found(config: sequence_to_sequence.Config, params: Any, batch: Any) -> dict[str, Any]:
    key = jax.random.key(0)
    sums, _ = sequence_to_sequence.sums(config, MODEL, params, batch, key, train=False)
    return {name: (float(total), float(count)) for name, (total, count) in sums.items()}


@pytest.mark.parametrize("chunks", [1, 4])
def test_sums_are_those_of_the_logits(chunks: int) -> None:
    params, batch, logits = whole()
    # What greedy decoding would write in the first two rows, but for one target of the second.
    best = logits.argmax(-1)
    batch["targets"] = batch["targets"].at[:2].set(best[:2])
    batch["mask"] = batch["mask"].at[1, 3].set(1)
    batch["targets"] = batch["targets"].at[1, 3].set((best[1, 3] + 1) % CONFIG.vocab_size)
    mask, targets = batch["mask"], batch["targets"]
    options = sequence_to_sequence.Config(label_smoothing=0.1, chunks=chunks)
    sums = found(options, params, batch)
    each = losses.softmax_cross_entropy(logits, targets, label_smoothing=0.1)
    assert sums["loss"] == pytest.approx((float((each * mask).sum()), float(mask.sum())), rel=1e-5)
    hits = (best == targets) * mask
    assert sums["accuracy"] == (float(hits.sum()), float(mask.sum()))
    assert hits[1].sum() == mask[1].sum() - 1
    assert sums["exact_match"] == (1.0, 4.0)


def test_chunks_that_do_not_divide_are_refused() -> None:
    params, batch, _ = whole()
    with pytest.raises(ValueError, match=r"objective.chunks=3 does not divide 16 positions"):
        found(sequence_to_sequence.Config(chunks=3), params, batch)
    with pytest.raises(ValueError, match=r"objective.chunks=0: must be at least 1"):
        sequence_to_sequence.Config(chunks=0)


def test_what_is_padding_in_the_inputs_does_not_count() -> None:
    params, batch, _ = whole()
    padding = batch["input_segments"] == 0
    assert padding.any()
    other = batch | {"inputs": jnp.where(padding, (batch["inputs"] + 1) % 90, batch["inputs"])}
    options = sequence_to_sequence.Config()
    np.testing.assert_array_equal(
        list(found(options, params, other).values()), list(found(options, params, batch).values())
    )
