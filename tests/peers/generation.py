"""`generate` of transformers on tiny decoders: what comes after some prompts, token by token."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

from tests.golden_store import Record
from tests.parity.generation import MODES, NEW, NOTHING, STOP
from tests.peers import decoders
from tests.peers.packages import tensor, versions

VARIANTS = ("gpt2", "llama")
LENGTHS = (4, 1, 3)  # of the prompts; with NEW, all of the positions that the tiny GPT-2 has


def record(variant: str, seed: int) -> Record:
    """Inputs: "prompts" (rows, P), "lengths" and FILE/name; outputs: for each of `MODES` the new
    tokens of each row, (rows, NEW), NOTHING after a stop token."""
    made = decoders.model(variant, seed)
    random = np.random.default_rng(seed)
    prompts = random.integers(0, made.config.vocab_size, (len(LENGTHS), max(LENGTHS)))
    outputs = {}
    for mode, how in MODES.items():
        options = dict(
            max_new_tokens=NEW, do_sample=False, eos_token_id=list(STOP), pad_token_id=STOP[0]
        ) | dict(
            num_beams=how.beams,
            repetition_penalty=how.repetition_penalty,
            length_penalty=how.length_penalty,
            early_stopping=how.early_stopping,
        )
        rows = np.full((len(LENGTHS), NEW), NOTHING, np.int32)
        # Each by itself: their penalty would fall on the padding of a batch too.
        for row, prompt, length in zip(rows, prompts, LENGTHS, strict=True):
            ids = tensor(prompt[None, :length])
            with torch.no_grad():
                found = made.generate(ids, attention_mask=torch.ones_like(ids), **options)
            new = found[0, length:].numpy()
            row[: len(new)] = new
        outputs[mode] = rows
    with tempfile.TemporaryDirectory() as folder:
        made.save_pretrained(folder)
        tensors = load_file(Path(folder) / "model.safetensors")
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    about = {
        "reference": f"transformers.{type(made).__name__}.generate",
        "versions": versions("torch", "transformers"),
        "seed": seed,
        "config": config,
    }
    inputs = {f"file/{name}": x for name, x in tensors.items()}
    inputs["prompts"] = prompts.astype(np.int32)
    inputs["lengths"] = np.asarray(LENGTHS, np.int32)
    return Record(inputs, outputs, about)
