"""What we export is what transformers loads; its feature extractor hears what we hear."""

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

from nn.families.whisper import Model
from nn.layers.spectrogram import fit, log_mel
from nn.parallel import unbox
from nn.pretrained import from_ours, to_ours
from nn.pretrained import whisper as table
from tests.peers import whispers
from tests.peers.packages import array, tensor


@pytest.mark.parametrize("bands", [80, 128])
def test_frames_are_those_of_the_feature_extractor(bands: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    time = np.arange(31 * 16_000) / 16_000  # a second is cut off
    pitch = rng.uniform(80, 2000)
    long = 0.3 * np.sin(2 * np.pi * pitch * time) + 0.01 * rng.normal(size=time.shape)
    short = 0.1 * rng.normal(size=12_345)
    theirs = transformers.WhisperFeatureExtractor(feature_size=bands)
    for audio in (long.astype(np.float32), short.astype(np.float32)):
        expected = theirs(audio, sampling_rate=16_000, return_tensors="np").input_features
        ours = jax.jit(lambda x: log_mel(fit(x), bands))(audio[None])
        assert ours.shape == (1, 3000, bands)
        gap = np.abs(ours - expected.swapaxes(1, 2))
        # Both transform in float32: beside a loud tone a few of the quiet bands have fewer digits.
        assert np.quantile(gap, 0.999) <= 1e-5 and gap.max() <= 1e-4


@pytest.mark.parametrize("variant", whispers.VARIANTS)
def test_transformers_loads_our_export(variant: str, seed: int, tmp_path: Path) -> None:
    """A model of ours that never saw theirs: initialised, perturbed, written, read, compared."""
    config = table.config_from(whispers.OPTIONS[variant])
    rng = np.random.default_rng(seed)
    frames, ids = whispers.frames(seed), rng.integers(0, config.vocab_size, (whispers.BATCH, 1))
    made = unbox(Model(config).init(jax.random.key(seed), jnp.asarray(frames), jnp.asarray(ids)))
    params = jax.tree.map(
        lambda x: np.asarray(x) + rng.normal(0, 0.2, x.shape).astype(np.float32), made["params"]
    )
    logits = Model(config).apply({"params": params}, jnp.asarray(frames), jnp.asarray(ids))

    save_file(
        from_ours(table, params, config), tmp_path / "model.safetensors", metadata={"format": "pt"}
    )
    (tmp_path / "config.json").write_text(json.dumps(table.config_to(config)), encoding="utf-8")
    theirs, report = transformers.WhisperForConditionalGeneration.from_pretrained(
        tmp_path, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[kind] for kind in report), report
    with torch.no_grad():
        given = {"input_features": tensor(frames.swapaxes(1, 2)), "decoder_input_ids": tensor(ids)}
        expected = array(theirs.eval()(**given).logits)
    scale = np.abs(expected).max()
    assert np.abs(np.asarray(logits) - expected).max() <= 1e-5 * scale


def test_bfloat16_stays_within_its_rounding(seed: int) -> None:
    """Neither is exact: both are as far from float32 as eight bits are, and no further apart."""
    made, frames = whispers.model("whisper", seed), whispers.frames(seed)
    ids = np.random.default_rng(seed).integers(0, 37, (whispers.BATCH, whispers.LENGTH))
    config = table.config_from(whispers.OPTIONS["whisper"])
    tensors = {name: array(x) for name, x in made.state_dict().items() if name != "proj_out.weight"}
    params = to_ours(table, tensors, config)
    given = {"input_features": tensor(frames.swapaxes(1, 2)), "decoder_input_ids": tensor(ids)}
    with torch.no_grad():
        full = array(made(**given).logits)
        given["input_features"] = given["input_features"].bfloat16()
        theirs = array(made.bfloat16()(**given).logits.float())
    half = Model(config, jnp.bfloat16).apply({"params": params}, frames, jnp.asarray(ids))
    ours, scale = np.asarray(half, np.float32), np.abs(full).max()
    assert np.abs(ours - full).max() <= max(2 * np.abs(theirs - full).max(), 0.02 * scale)
    assert np.abs(ours - full).max() > 0
