"""Our loop over tokens under Whisper's rules, on the files and frames of the record."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch.run import decode, transcript
from launch.run.logits import Sampling
from launch.run.reading import Inputs
from nn.families.whisper import Config, Model
from nn.pretrained import find, to_ours
from tests.golden_store import Record
from tests.parity.whispers import file_of

NEW = 9  # tokens
NOTHING = -1
END = 20
# 20 tokens of text, the end, those that start a transcript, and 10 times.
TOKENS: dict[str, Any] = {
    "eos_token_id": END,
    "decoder_start_token_id": 21,
    "lang_to_id": {"<|en|>": 22, "<|fr|>": 23},
    "task_to_id": {"translate": 24, "transcribe": 25},
    "no_timestamps_token_id": 26,
    "suppress_tokens": [21, 22, 23, 24, 25],
}
# How it is asked for: language, task, timestamps, and what the rules are given beside TOKENS.
MODES: dict[str, tuple[str, str, bool, dict[str, Any]]] = {
    "text": (
        "en",
        "transcribe",
        False,
        # Pairs of times would make `generate` go on behind them, even here.
        {"begin_suppress_tokens": [0, 1, 2, 3, 19, END], "suppress_tokens": [*range(21, 37)]},
    ),
    "times": ("fr", "translate", True, {}),
    "early": ("en", "transcribe", True, {"max_initial_timestamp_index": 2}),
    "few": ("fr", "transcribe", True, {"suppress_tokens": [*range(2, 20), 21, 22, 23, 24, 25]}),
}


def tolerance(variant: str) -> float:
    return 0.0  # tokens


@functools.cache
def _run(config: Config, rules: transcript.Rules) -> Any:
    how = Sampling(temperature=0, stop=(END,))
    loop = decode.loop_of(Model(config), NEW, how, rules)
    return jax.jit(functools.partial(decode.run, loop))


def compute(variant: str, record: Record) -> dict[str, np.ndarray]:
    """The new tokens of each row in each mode, NOTHING from the end on."""
    table = find("whisper")
    config = table.config_from(record.about["config"])
    params = to_ours(table, file_of(record), config)
    frames = jnp.asarray(record.inputs["frames"])
    memory = Model(config).apply({"params": params}, frames, method="encode")
    key, rows = jax.random.key_data(jax.random.key(0)), len(frames)
    found = {}
    for mode, (language, task, times, more) in MODES.items():
        start = transcript.prompt(TOKENS, language, task, times)
        prompts, length = jnp.asarray([start] * rows, jnp.int32), len(start)
        lengths = jnp.full((rows,), length, jnp.int32)
        inputs = Inputs(prompts, lengths, key, jnp.arange(rows), {"memory": memory})
        rules = transcript.rules(TOKENS | more, times)
        view = jax.device_get(_run(config, rules)(params, inputs))
        new = np.full((rows, NEW), NOTHING, np.int32)
        for i, end in enumerate(view["ends"]):
            made = view["tokens"][i, length:end]
            new[i, : end - length] = np.where(made == END, NOTHING, made)
        found[mode] = new
    return found
