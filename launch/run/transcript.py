"""What Whisper may write: tokens that are never wanted, and timestamps that make sense.

Radford et al. 2022, sections 2.3 (the tokens that start a transcript) and 4.5 (heuristics of
decoding). The tokens are those of a published directory's generation_config.json.

Legend: B rows, T tokens of the longest row, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from nn import names

TASKS = ("transcribe", "translate")
LANGUAGE = re.compile(r"<\|[a-z]{2,3}\|>")  # a token's name


@dataclasses.dataclass(frozen=True)
class Rules:
    """A `launch.run.logits.Processor`: logits of what a transcript cannot go on with become -inf.

    suppress: tokens that are never written; begin_suppress: nor as the first one.
    only: if there are any, no other token is ever written.
    end: the token that ends a transcript; special ones follow it, and text comes before.
    no_timestamps: the token that says so; those after it are times, in order. -1: no rule on them.
    max_initial: the first time is at most that many steps after 0; -1: no limit.
    """

    suppress: tuple[int, ...] = ()
    begin_suppress: tuple[int, ...] = ()
    end: int = 0
    no_timestamps: int = -1
    max_initial: int = -1
    only: tuple[int, ...] = ()

    @property
    def timed(self) -> bool:
        """Whether times are written."""
        return self.no_timestamps >= 0

    def __call__(
        self, logits_BV: jax.Array, tokens_BT: jax.Array, ends_B: jax.Array, made_B: jax.Array
    ) -> jax.Array:
        token_1V = jnp.arange(logits_BV.shape[1])[None]
        banned_BV = jnp.isin(token_1V, jnp.asarray(self.suppress, jnp.int32))
        begin_1V = jnp.isin(token_1V, jnp.asarray(self.begin_suppress, jnp.int32))
        banned_BV = banned_BV | (made_B[:, None] == 0) & begin_1V
        if self.only:
            banned_BV |= ~jnp.isin(token_1V, jnp.asarray(self.only, jnp.int32))
        if not self.timed:
            return jnp.where(banned_BV, -jnp.inf, logits_BV)
        banned_BV |= self._out_of_time(token_1V, tokens_BT, ends_B, made_B)
        logits_BV = jnp.where(banned_BV, -jnp.inf, logits_BV)
        # Where all times together are likelier than the likeliest of the others, it is a time.
        times_1V = token_1V > self.no_timestamps
        time_B1 = jax.nn.logsumexp(
            jnp.where(times_1V, logits_BV, -jnp.inf).astype(jnp.float32), axis=1, keepdims=True
        )
        text_B1 = jnp.max(jnp.where(times_1V, -jnp.inf, logits_BV), axis=1, keepdims=True)
        return jnp.where(~times_1V & (time_B1 > text_B1), -jnp.inf, logits_BV)

    def _out_of_time(
        self, token_1V: jax.Array, tokens_BT: jax.Array, ends_B: jax.Array, made_B: jax.Array
    ) -> jax.Array:
        """Tokens that break the order of times, (B, V).

        A transcript starts with a time. Times come in pairs, the end of one segment and the start
        of the next, but for the one before the end. None is before the one that precedes it, and a
        segment does not end when it starts.
        """
        times_1V, made_B1 = token_1V > self.no_timestamps, made_B[:, None]
        place_1T = jnp.arange(tokens_BT.shape[1])[None]
        new_BT = (place_1T >= (ends_B - made_B)[:, None]) & (place_1T < ends_B[:, None])
        seen_BT = jnp.where(new_BT & (tokens_BT > self.no_timestamps), tokens_BT, -1)
        latest_B1 = jnp.max(seen_BT, axis=1, keepdims=True)

        def was_time(back: int) -> jax.Array:
            places_B1 = jnp.maximum(ends_B - back, 0)[:, None]
            return jnp.take_along_axis(seen_BT, places_B1, axis=1) >= 0

        last_B1 = was_time(1) & (made_B1 >= 1)
        paired_B1 = was_time(2) | (made_B1 < 2)  # the first of all starts a segment
        ended_B1 = last_B1 & ~paired_B1
        earliest_B1 = latest_B1 + jnp.where(ended_B1, 0, 1)
        banned_BV = (token_1V == self.no_timestamps) | (last_B1 & paired_B1 & times_1V)
        banned_BV |= ended_B1 & (token_1V < self.end)
        banned_BV |= times_1V & (latest_B1 >= 0) & (token_1V < earliest_B1)
        banned_BV |= (made_B1 == 0) & ~times_1V
        if self.max_initial >= 0:
            last_allowed = self.no_timestamps + 1 + self.max_initial
            banned_BV |= (made_B1 == 0) & (token_1V > last_allowed)
        return banned_BV


def rules(generation: Mapping[str, Any], timestamps: bool = False) -> Rules:
    """From the content of generation_config.json; timestamps: whether times are written.

    Raises:
      ValueError: a key that is needed is missing.
    """

    def tokens(key: str) -> tuple[int, ...]:
        return tuple(generation[key] or ()) if key in generation else ()

    limit = generation.get("max_initial_timestamp_index")
    return Rules(
        suppress=tokens("suppress_tokens"),
        begin_suppress=tokens("begin_suppress_tokens"),
        end=_needed(generation, "eos_token_id"),
        no_timestamps=_needed(generation, "no_timestamps_token_id") if timestamps else -1,
        max_initial=-1 if limit is None else limit,
    )


def prompt(
    generation: Mapping[str, Any],
    language: str = "en",
    task: str = "transcribe",
    timestamps: bool = False,
) -> tuple[int, ...]:
    """The tokens that start a transcript; of a model for English alone, without language and task.

    Raises:
      ValueError: a language or task that the model has no token for.
    """
    start = [_needed(generation, "decoder_start_token_id")]
    if codes := languages(generation):
        start.append(names.lookup("language", language, codes))
        start.append(names.lookup("task", task, generation["task_to_id"]))
    elif (language, task) != ("en", "transcribe"):
        raise ValueError(
            f"language={language!r} and task={task!r}: the model is for English alone; "
            "nearest: language='en' and task='transcribe'"
        )
    if not timestamps:
        start.append(_needed(generation, "no_timestamps_token_id"))
    return tuple(start)


def languages(generation: Mapping[str, Any]) -> dict[str, int]:
    """The tokens of languages by their codes, such as `en`; none of a model for English alone."""
    known = generation["lang_to_id"] if "lang_to_id" in generation else {}
    return {name.strip("<|>"): token for name, token in known.items()}


def by_name(special: Mapping[str, int], english: bool) -> dict[str, Any]:
    """What generation_config.json would say of the special tokens, by their published names; it
    suppresses nothing.

    special: tokens by name; english: whether the model is for English alone, although its
      tokeniser may know other languages.
    Raises:
      ValueError: a name that every model has is missing.
    """
    keys = {
        "decoder_start_token_id": "<|startoftranscript|>",
        "eos_token_id": "<|endoftext|>",
        "no_timestamps_token_id": "<|notimestamps|>",
    }
    if missing := [name for name in keys.values() if name not in special]:
        raise ValueError(
            f"no token {missing[0]!r} in the tokeniser and no generation_config.json: one of them "
            "must say how a transcript starts and ends"
        )
    found: dict[str, Any] = {key: special[name] for key, name in keys.items()}
    if english:
        return found
    tasks = {task: special[f"<|{task}|>"] for task in TASKS if f"<|{task}|>" in special}
    languages = {name: x for name, x in special.items() if LANGUAGE.fullmatch(name)}
    return found | {"lang_to_id": languages, "task_to_id": tasks}


def _needed(generation: Mapping[str, Any], key: str) -> int:
    if not isinstance(generation.get(key), int):
        raise ValueError(f"generation_config.json: {key}={generation.get(key)!r} must be a token")
    return int(generation[key])
