"""`generate` of transformers on tiny Whispers: what they write, with timestamps and without."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

from tests.golden_store import Record
from tests.parity.transcripts import END, MODES, NEW, NOTHING, TOKENS
from tests.peers import whispers
from tests.peers.packages import tensor, versions

VARIANTS = ("whisper_relu_untied",)


def record(variant: str, seed: int) -> Record:
    """Inputs: "frames" (rows, F, M) and FILE/name; outputs: for each of `MODES` the new tokens of
    each row, (rows, NEW), NOTHING from the end on."""
    made = whispers.model(variant, seed)
    frames = whispers.frames(seed)
    outputs = {}
    for mode, (language, task, times, more) in MODES.items():
        values = dict.fromkeys(("suppress_tokens", "begin_suppress_tokens"))
        values |= {"max_initial_timestamp_index": None, "pad_token_id": END} | TOKENS | more
        for key, value in values.items():
            setattr(made.generation_config, key, value)
        made.generation_config.is_multilingual = True
        rows = np.full((len(frames), NEW), NOTHING, np.int32)
        for row, one in zip(rows, frames, strict=True):
            with torch.no_grad():
                found = made.generate(
                    tensor(one.T[None]),
                    language=language,
                    task=task,
                    return_timestamps=times,
                    max_new_tokens=NEW,
                    do_sample=False,
                    return_dict_in_generate=True,
                )
            if times:  # it goes on after the last pair of times: this is its first window
                found = found["segments"][0][0]["result"]
            new = found["sequences"].flatten().numpy()[3 + (not times) :]
            new = new[: np.argmax([*(new == END), True])]
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
    inputs = {f"file/{name}": x for name, x in tensors.items()} | {"frames": frames}
    return Record(inputs, outputs, about)
