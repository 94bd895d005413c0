"""Encoder-decoders beside transformers: our exports, greedy decoding, half precision."""

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
from safetensors.numpy import load_file, save_file

from launch.run.decode import Sampling, generate
from nn.families.seq2seq_transformer import Config, Model, example
from nn.parallel import unbox
from nn.pretrained import find, from_ours, to_ours
from tests.peers import encoder_decoders
from tests.peers.packages import array, tensor

NEW = 8


def ours_of(theirs: Any, folder: Path) -> tuple[Config, dict[str, Any]]:
    """Config and parameters from the files that they write."""
    theirs.save_pretrained(folder)
    table = find(theirs.config.model_type)
    config = table.config_from(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    return config, to_ours(table, load_file(folder / "model.safetensors"), config)


@pytest.mark.parametrize("variant", encoder_decoders.VARIANTS)
def test_transformers_loads_our_export(variant: str, seed: int, tmp_path: Path) -> None:
    """A model of ours that never saw theirs: initialised, perturbed, written, read, compared."""
    table = find(variant.partition("_")[0])
    config = table.config_from(encoder_decoders.OPTIONS[variant])
    rng = np.random.default_rng(seed)
    made = unbox(Model(config).init(jax.random.key(seed), *example(config, 1)))["params"]
    params = jax.tree.map(
        lambda x: np.asarray(x) + rng.normal(0, 0.2, x.shape).astype(np.float32), made
    )
    save_file(
        from_ours(table, params, config), tmp_path / "model.safetensors", metadata={"format": "pt"}
    )
    (tmp_path / "config.json").write_text(json.dumps(table.config_to(config)), encoding="utf-8")
    theirs, report = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        tmp_path, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[kind] for kind in report), report
    given = encoder_decoders.batch(theirs.config, seed)
    for longer, length in ((encoder_decoders.LONGER, encoder_decoders.LENGTH), (1, 1)):
        inputs, mask = given["inputs"][:, -longer:], given["mask"][2:, -longer:].repeat(3, axis=0)
        tokens = given["decoder_inputs"][:, :length]
        logits = Model(config).apply({"params": params}, inputs, tokens, mask)
        with torch.no_grad():
            expected = array(
                theirs.eval()(
                    input_ids=tensor(inputs),
                    attention_mask=tensor(mask),
                    decoder_input_ids=tensor(tokens),
                ).logits
            )
        assert np.abs(np.asarray(logits) - expected).max() <= 1e-5 * np.abs(expected).max()


def greedy_by_both(variant: str, seed: int, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Tokens that ours and theirs write, behind the one that starts them."""
    theirs = encoder_decoders.model(variant, seed)
    config, params = ours_of(theirs, folder)
    given = encoder_decoders.batch(theirs.config, seed)
    for name in ("eos_token_id", "forced_eos_token_id"):  # nothing ends a row
        setattr(theirs.generation_config, name, None)
    expected = theirs.generate(
        input_ids=tensor(given["inputs"]),
        attention_mask=tensor(given["mask"]),
        decoder_start_token_id=config.start_token,
        max_new_tokens=NEW,
        do_sample=False,
        num_beams=1,
    )
    model, variables, rows = Model(config), {"params": params}, encoder_decoders.BATCH
    memory = model.apply(variables, given["inputs"], given["mask"], method="encode")
    tokens, _ = generate(
        model,
        params,
        jnp.full((rows, 1), config.start_token, jnp.int32),
        jnp.ones(rows, jnp.int32),
        jax.random.key_data(jax.random.key(0)),
        jnp.arange(rows),
        {"memory": memory, "memory_segments": jnp.asarray(given["mask"])},
        new_tokens=NEW,
        how=Sampling(temperature=0.0),
    )
    return np.asarray(tokens), array(expected)


@pytest.mark.parametrize("variant", encoder_decoders.VARIANTS)
def test_greedy_decoding_writes_what_theirs_does(variant: str, seed: int, tmp_path: Path) -> None:
    """Four models, for one of random weights may say the same always."""
    written: set[int] = set()
    for number in range(4):
        got, expected = greedy_by_both(variant, seed + number, tmp_path)
        np.testing.assert_array_equal(got, expected)
        written |= set(expected[:, 1:].flatten().tolist())
    assert len(written) > 2


@pytest.mark.parametrize("variant", ["bart", "t5"])
def test_bfloat16_rounds_as_theirs_does(variant: str, seed: int, tmp_path: Path) -> None:
    theirs = encoder_decoders.model(variant, seed)
    config, params = ours_of(theirs, tmp_path)
    given = encoder_decoders.batch(theirs.config, seed)

    def logits() -> np.ndarray:
        with torch.no_grad():
            result = theirs(
                input_ids=tensor(given["inputs"]),
                attention_mask=tensor(given["mask"]),
                decoder_input_ids=tensor(given["decoder_inputs"]),
            )
        return array(result.logits.float())

    exact = logits()
    theirs.to(torch.bfloat16)
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
    model = Model(config, dtype=jnp.bfloat16)
    found = model.apply({"params": half}, given["inputs"], given["decoder_inputs"], given["mask"])
    assert found.dtype == jnp.bfloat16
    error = np.abs(np.asarray(found, np.float32) - exact).mean()
    assert 0 < error <= 1.5 * np.abs(logits() - exact).mean()
