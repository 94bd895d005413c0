"""From a model of transformers to what a record holds of it, by the files that it writes."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file

from tests.peers.packages import versions

Arrays = dict[str, np.ndarray]


def through_files(
    made: transformers.PreTrainedModel, seed: int, partial: bool = False
) -> tuple[Arrays, Arrays, dict[str, Any]]:
    """The tensors of the file, FILE/name; the gradient for each of them; what the record is about.

    Gradients take the place of the parameters and then the same way, so that they have the names of
    the file. The model is of no use afterwards.

    partial: some parameters have no gradient, which is then 0.
    """

    def saved() -> Arrays:
        with tempfile.TemporaryDirectory() as folder:
            made.save_pretrained(folder)
            about["config"] = json.loads((Path(folder) / "config.json").read_text("utf-8"))
            return load_file(Path(folder) / "model.safetensors")

    about: dict[str, Any] = {
        "reference": f"transformers.{type(made).__name__}",
        "versions": versions("torch", "transformers"),
        "seed": seed,
    }
    tensors = saved()
    with torch.no_grad():
        for parameter in made.parameters():
            assert partial or parameter.grad is not None
            parameter.copy_(0 * parameter if parameter.grad is None else parameter.grad)
    return {f"file/{name}": x for name, x in tensors.items()}, saved(), about
