"""The outputs of a published directory: ours, and beside them those of transformers."""

from __future__ import annotations

import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch.run import config as configs
from launch.run import pretrained, published, resolve
from launch.run.build import Run

TOLERANCE = 1e-4  # of the largest output, in float32


def ours(run: Run) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """A fixed batch of the model's inputs, and its outputs on it, float32.

    The weights lie on the run's mesh; the compiler splits the model that one device would run.
    """
    family = resolve.module("model", run.config.model.family)
    config = configs.section(run.config, "model")
    variables = pretrained.variables(run.config.model.pretrained, run)
    inputs = family.example(config, 2)
    found: Any = jax.jit(family.Model(config, dtype=jnp.float32).apply)(variables, *inputs)
    outputs = found[0] if isinstance(found, tuple) else found
    return tuple(map(np.asarray, inputs)), np.asarray(outputs)


def installed() -> bool:
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def theirs(directory: str, inputs: tuple[np.ndarray, ...]) -> np.ndarray:
    """What transformers makes of the same batch: logits where the model has them.

    Raises:
      ValueError: config.json names no class of transformers.
    """
    import torch

    from launch.bench.torch_job import repair_torchvision

    repair_torchvision()
    import transformers

    model = published.read(directory)
    name = (model.raw["architectures"] or [""])[0] if "architectures" in model.raw else ""
    if not hasattr(transformers, name or "?"):
        raise ValueError(f"{directory}: architectures names no class of transformers: {name!r}")
    made = getattr(transformers, name).from_pretrained(
        str(model.directory), dtype=torch.float32, attn_implementation="eager", use_safetensors=True
    )
    made.config._experts_implementation = "eager"  # the grouped kernel wants other sizes
    with torch.no_grad():
        found = made.eval()(**_named(inputs, made.config.is_encoder_decoder))
    outputs = found.logits if hasattr(found, "logits") else found.last_hidden_state
    return np.asarray(outputs.numpy())


def _named(inputs: tuple[np.ndarray, ...], decoder: bool) -> dict[str, Any]:
    """Our positional inputs under the names of transformers."""
    import torch

    found = {}
    for x in inputs:
        if np.issubdtype(x.dtype, np.integer):
            key = "decoder_input_ids" if decoder and ("input_ids" in found) else "input_ids"
            found[key] = torch.from_numpy(x.astype(np.int64))
        else:
            images = x.astype(np.float32)
            found["pixel_values"] = torch.from_numpy(images).permute(0, 3, 1, 2)
    return found


def report(run: Run) -> tuple[str, bool]:
    """What to tell the user of the comparison, and whether it went well."""
    inputs, outputs = ours(run)
    if not np.isfinite(outputs).all():
        return "the outputs are not finite", False
    scale = float(np.abs(outputs).max())
    text = f"outputs {list(outputs.shape)}, largest {scale:.4g}"
    if not installed():
        return f"{text}; compared with nothing: transformers and torch are not installed", True
    expected = theirs(run.config.model.pretrained, inputs)
    if expected.shape != outputs.shape:
        return f"{text}; those of transformers are {list(expected.shape)}", False
    worst, largest = float(np.abs(outputs - expected).max()), float(np.abs(expected).max())
    good = worst <= TOLERANCE * largest
    verdict = "the same" if good else f"above {TOLERANCE:g} of the largest output: not the same"
    return f"{text}; max abs difference from transformers {worst:.3g}: {verdict}", good
