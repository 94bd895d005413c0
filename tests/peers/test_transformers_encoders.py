"""What we export of encoders is what transformers loads, under the names that it expects."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from nn.families.bert import Model
from nn.parallel import unbox
from nn.pretrained import find, from_ours
from tests.parity.encoders import outputs
from tests.peers import encoders
from tests.peers.packages import array


@pytest.mark.parametrize("variant", encoders.VARIANTS)
def test_transformers_loads_our_export(variant: str, seed: int, tmp_path: Path) -> None:
    """A model of ours that never saw theirs: initialised, perturbed, written, read, compared."""
    config_class, model_class = encoders.classes(variant)
    options = {**encoders.VARIANTS_OF[variant][2], "architectures": [model_class.__name__]}
    format_ = find(variant.partition("_")[0])
    config = format_.config_from(options)
    given = encoders.batch(variant, config.vocab_size, max(config.pad_token, 0), seed)
    rng = np.random.default_rng(seed)
    made = unbox(Model(config).init(jax.random.key(seed), jnp.asarray(given["ids"])))["params"]
    params = jax.tree.map(
        lambda x: np.asarray(x) + rng.normal(0, 0.2, x.shape).astype(np.float32), made
    )
    tensors = from_ours(format_, params, config)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(format_.config_to(config)), encoding="utf-8")
    theirs, report = model_class.from_pretrained(
        tmp_path, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    assert isinstance(theirs.config, config_class)
    assert not any(report[kind] for kind in report), report
    with torch.no_grad():
        expected, _ = encoders.run(theirs.eval(), given)
    ours = outputs(config, params, {name: jnp.asarray(x) for name, x in given.items()})
    assert ours.keys() == expected.keys()
    for name, x in expected.items():
        scale = float(x.abs().max())
        assert np.abs(np.asarray(ours[name]) - array(x)).max() <= 1e-5 * scale, name
