"""What we export is what transformers loads, under the names that it expects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import save_file

from nn.families.vit import Model
from nn.parallel import unbox
from nn.pretrained import find, from_ours
from tests.parity.vits import apply
from tests.peers import vits
from tests.peers.packages import array


def exported(variant: str, seed: int, folder: Path) -> tuple[Any, Any, Any]:
    """A model of ours that never saw theirs, initialised, perturbed and written: config,
    parameters, and theirs, read."""
    name, options, _ = vits.OPTIONS[variant]
    model_class = getattr(transformers, name)
    model_type = model_class.config_class.model_type
    raw = options | {"model_type": model_type, "architectures": [name]}
    table = find(model_type)
    config = table.config_from(raw)
    inputs = vits.inputs_of(variant, seed)
    rng = np.random.default_rng(seed)
    made = unbox(jax.jit(Model(config).init)(jax.random.key(seed), inputs["images"]))["params"]
    params = jax.tree.map(
        lambda x: np.asarray(x) + rng.normal(0, 0.2, x.shape).astype(np.float32), made
    )
    tensors = from_ours(table, params, config)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    written = table.config_to(config)
    assert written["architectures"] == [name]
    (folder / "config.json").write_text(json.dumps(written), encoding="utf-8")
    theirs, report = model_class.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[kind] for kind in report), report
    return config, params, theirs.eval()


@pytest.mark.parametrize("variant", vits.VARIANTS)
def test_transformers_loads_our_export(variant: str, seed: int, tmp_path: Path) -> None:
    config, params, theirs = exported(variant, seed, tmp_path)
    inputs = vits.inputs_of(variant, seed)
    with torch.no_grad():
        expected = vits.outputs_of(theirs, inputs)
    for ours, reference in zip(apply(config, params, inputs), expected, strict=True):
        scale = float(reference.abs().max())
        assert np.abs(np.asarray(ours) - array(reference)).max() <= 1e-5 * scale


def test_half_precision_stays_within_its_rounding(seed: int, tmp_path: Path) -> None:
    config, params, theirs = exported("dinov2_registers", seed, tmp_path)
    inputs = vits.inputs_of("dinov2_registers", seed)
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
    ours = apply(config, half, inputs, jnp.bfloat16)
    with torch.no_grad():
        expected = vits.outputs_of(theirs.to(torch.bfloat16), inputs)
    for x, reference in zip(ours, expected, strict=True):
        want = array(reference.float())
        assert np.abs(np.asarray(x, np.float32) - want).max() <= 0.04 * np.abs(want).max()
