"""The outputs of a published directory: ours, and beside them those of transformers."""

from __future__ import annotations

import importlib.util
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch.run import config as configs
from launch.run import pretrained, published, resolve
from launch.run.build import Run

TOLERANCE = 1e-4  # of the largest output, in float32
# Of transformers' models, by what they end with.
OUTPUTS = ("logits", "prediction_logits", "logits_per_image", "pooler_output", "last_hidden_state")


def ours(run: Run) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """A fixed batch of the model's inputs, and its outputs on it, float32.

    The weights lie on the run's mesh; the compiler splits the model that one device would run.
    """
    family = resolve.module("model", run.config.model.family)
    config = configs.section(run.config, "model")
    variables = pretrained.variables(run.config.model.pretrained, run)
    inputs = tuple(_without_padding(config, x) for x in family.example(config, 2))
    found: Any = jax.jit(family.Model(config, dtype=jnp.float32).apply)(variables, *inputs)
    outputs = found[0] if isinstance(found, tuple) else found
    return tuple(map(np.asarray, inputs)), np.asarray(outputs)


def _without_padding(config: Any, x: jax.Array) -> jax.Array:
    """Tokens of which none is one that fills rows up, and that they look through by default."""
    pad = config.pad_token if hasattr(config, "pad_token") else -1
    return jnp.where(x == pad, (pad + 1) % config.vocab_size, x) if pad >= 0 else x


def installed() -> bool:
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def theirs(directory: str, inputs: tuple[np.ndarray, ...], shape: tuple[int, ...]) -> np.ndarray:
    """What transformers makes of the same batch: the first of `OUTPUTS` of the shape that ours has,
    or else the first that there is.

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
        found = made.eval()(**_named(inputs, made))
    outputs = [np.asarray(found[name].numpy()) for name in OUTPUTS if name in found]
    if "last_hidden_state" in found:  # of a model whose first token stands for a row
        outputs.append(np.asarray(found["last_hidden_state"][:, 0].numpy()))
    return next((x for x in outputs if x.shape == shape), outputs[0])


def _named(inputs: tuple[np.ndarray, ...], made: Any) -> dict[str, Any]:
    """Our positional inputs under the names of transformers, for one of its models."""
    import torch

    found: dict[str, Any] = {}
    decoder = made.config.is_encoder_decoder
    for x in inputs:
        if np.issubdtype(x.dtype, np.integer):
            key = "decoder_input_ids" if decoder and found else "input_ids"
            found[key] = torch.from_numpy(x.astype(np.int64))
        elif x.ndim == 3:  # frames of sound
            found["input_features"] = torch.from_numpy(x.astype(np.float32)).transpose(1, 2)
        else:
            images = x.astype(np.float32)
            found["pixel_values"] = torch.from_numpy(images).permute(0, 3, 1, 2)
    if "noise" in inspect.signature(made.forward).parameters:  # by which patches are left out
        made.config.mask_ratio = 0.0
        size = made.config.image_size // made.config.patch_size
        found["noise"] = torch.arange(size * size, dtype=torch.float32).expand(len(x), -1)
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
    expected = theirs(run.config.model.pretrained, inputs, outputs.shape)
    if expected.shape != outputs.shape:
        return f"{text}; those of transformers are {list(expected.shape)}", False
    worst, largest = float(np.abs(outputs - expected).max()), float(np.abs(expected).max())
    good = worst <= TOLERANCE * largest
    verdict = "the same" if good else f"above {TOLERANCE:g} of the largest output: not the same"
    return f"{text}; max abs difference from transformers {worst:.3g}: {verdict}", good
