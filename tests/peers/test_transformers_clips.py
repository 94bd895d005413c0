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

from nn.families.clip import Model
from nn.parallel import unbox
from nn.pretrained import clip, from_ours
from tests.peers import clips
from tests.peers.packages import array


@pytest.mark.parametrize("variant", clips.VARIANTS)
def test_transformers_loads_our_export(variant: str, seed: int, tmp_path: Path) -> None:
    """A model of ours that never saw theirs: initialised, perturbed, written, read, compared; and
    once more in half precision."""
    config = clip.config_from(clips.raw(variant))
    inputs = clips.inputs_of(variant, seed)
    images, tokens = jnp.asarray(inputs["images"]), jnp.asarray(inputs["tokens"])
    rng = np.random.default_rng(seed)
    made = unbox(jax.jit(Model(config).init)(jax.random.key(seed), images, tokens))["params"]
    params = jax.tree.map(
        lambda x: np.asarray(x) + rng.normal(0, 0.2, x.shape).astype(np.float32), made
    )
    tensors = from_ours(clip, params, config)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(clip.config_to(config)), encoding="utf-8")
    theirs, report = transformers.AutoModel.from_pretrained(
        tmp_path, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[kind] for kind in report), report

    def compared(model: Model, params: Any, limit: float) -> None:
        with torch.no_grad():
            expected = clips.outputs_of(theirs.eval(), inputs)
        image, text, *_ = model.apply({"params": params}, images, tokens, method="features")
        for ours, reference in ((image, expected["image"]), (text, expected["text"])):
            want = array(reference.float())
            assert np.abs(np.asarray(ours) - want).max() <= limit * np.abs(want).max()

    compared(Model(config), params, 1e-5)
    theirs = theirs.to(torch.bfloat16)
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
    compared(Model(config, jnp.bfloat16), half, 0.05)
