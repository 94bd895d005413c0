"""What we export is what transformers loads, under the names that it expects."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import save_file

from nn.families.transformer import Model
from nn.parallel import unbox
from nn.pretrained import find, from_ours, to_ours
from tests.parity.decoders import file_of
from tests.peers import decoders
from tests.peers.packages import array, tensor


@pytest.mark.parametrize("variant", decoders.VARIANTS)
def test_transformers_loads_our_export(variant: str, seed: int, tmp_path: Path) -> None:
    """A model of ours that never saw theirs: initialised, perturbed, written, read, compared."""
    table = find(decoders.model_type(variant))
    config = table.config_from(decoders.OPTIONS[variant])
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, config.vocab_size, (decoders.BATCH, decoders.LENGTH))
    made = unbox(Model(config).init(jax.random.key(seed), jnp.asarray(ids)))["params"]
    params = jax.tree.map(
        lambda x: np.asarray(x) + rng.normal(0, 0.2, x.shape).astype(np.float32), made
    )
    logits = Model(config).apply({"params": params}, jnp.asarray(ids))

    save_file(
        from_ours(table, params, config), tmp_path / "model.safetensors", metadata={"format": "pt"}
    )
    (tmp_path / "config.json").write_text(json.dumps(table.config_to(config)), encoding="utf-8")
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[kind] for kind in report), report
    theirs.config._experts_implementation = "eager"  # the grouped kernel wants other sizes
    with torch.no_grad():
        expected = array(theirs.eval()(input_ids=tensor(ids)).logits)
    scale = np.abs(expected).max()
    assert np.abs(np.asarray(logits) - expected).max() <= 1e-5 * scale


@pytest.mark.parametrize("variant", ["gpt2", "llama", "gemma2", "gpt_neox"])
def test_bfloat16_is_as_near_as_theirs(variant: str, seed: int) -> None:
    """Both round to bfloat16 on the way: we are at most as far from float32 as twice they are."""
    made = decoders.model(variant, seed)
    table = find(decoders.model_type(variant))
    record = decoders.record(variant, seed)
    ids = record.inputs["ids"]
    config = table.config_from(record.about["config"])
    params = to_ours(table, file_of(record), config)
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
    ours = Model(config, dtype=jnp.bfloat16).apply({"params": half}, jnp.asarray(ids))
    assert ours.dtype == jnp.bfloat16
    with torch.no_grad():
        theirs = array(made.to(torch.bfloat16)(input_ids=tensor(ids)).logits.float())
    exact = record.outputs["logits"]
    error, allowed = np.abs(np.asarray(ours, np.float32) - exact), np.abs(theirs - exact)
    assert 0 < error.mean() <= 2 * allowed.mean()
    assert error.max() <= 2 * allowed.max()
