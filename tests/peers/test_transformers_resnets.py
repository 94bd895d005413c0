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

from nn.families.resnet import Model
from nn.parallel import unbox
from nn.pretrained import from_ours, resnet
from tests.peers import resnets
from tests.peers.packages import array, tensor


@pytest.mark.parametrize("variant", resnets.VARIANTS)
def test_transformers_loads_our_export(variant: str, seed: int, tmp_path: Path) -> None:
    """A model of ours that never saw theirs: initialised, perturbed, written, read, compared."""
    config = resnet.config_from(resnets.OPTIONS[variant])
    rng = np.random.default_rng(seed)
    shape = (resnets.BATCH, resnets.HEIGHT, resnets.WIDTH, config.in_channels)
    images = rng.normal(size=shape).astype(np.float32)
    made = unbox(jax.jit(Model(config).init)(jax.random.key(seed), images))
    variables = jax.tree.map(
        lambda x: np.asarray(x) + np.abs(rng.normal(0, 0.1, x.shape)).astype(np.float32),
        {name: made[name] for name in ("params", "batch_stats")},
    )
    logits = jax.jit(Model(config).apply)(variables, jnp.asarray(images))

    tensors = from_ours(resnet, variables, config)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(resnet.config_to(config)), encoding="utf-8")
    theirs, report = transformers.AutoModelForImageClassification.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[kind] for kind in report), report
    with torch.no_grad():
        pixels = tensor(images).permute(0, 3, 1, 2)
        expected = array(theirs.eval()(pixel_values=pixels).logits)
    scale = np.abs(expected).max()
    assert np.abs(np.asarray(logits) - expected).max() <= 1e-5 * scale
