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
from nn.pretrained import find, from_ours
from tests.peers import decoders
from tests.peers.packages import array, tensor


@pytest.mark.parametrize("variant", decoders.VARIANTS)
def test_transformers_loads_our_export(variant: str, seed: int, tmp_path: Path) -> None:
    """A model of ours that never saw theirs: initialised, perturbed, written, read, compared."""
    table = find(variant.partition("_")[0])
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
