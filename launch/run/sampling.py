"""Text from a trained model: prompts in, completions out, on a mesh."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from launch.cluster import hardware
from launch.run import decode, encoding, text
from launch.run.build import Run
from launch.run.decode import Sampling
from launch.run.reading import Inputs
from launch.run.speculative import Speculative
from nn import parallel
from nn.parallel.mesh import BATCH_AXES, fold_pipe

CHUNK = 8  # tokens of a row between looks at them: some updates a second, at little cost
LOOKED_UP = {"embed", "positions"}  # tables of which a step reads some rows

# Shown after each chunk: the new tokens of each row so far, and whether the row is done.
Show = Callable[[list[list[int]], list[bool]], None]


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model with its weights on a mesh, and what turns text into its tokens."""

    model: nn.Module
    params: Any
    specs: Any
    mesh: jax.sharding.Mesh
    rules: parallel.Rules
    tokenizer: text.Tokenizer


@dataclasses.dataclass(frozen=True)
class Completion:
    """Completions, one per prompt, and the speed of the loop without its compilation.

    tokens: of each completion. reading, seconds: of the prompts with the first token, and of the
    steps after it. bytes_per_step: weights and cache that a device reads in one of them.
    peak: bytes/s that a device can read at most; None where that is not known.
    accepted: share of the draft tokens that were kept; None without a draft model.
    """

    texts: list[str]
    tokens: list[list[int]]
    reading: float
    seconds: float
    steps: int
    bytes_per_step: int
    peak: float | None
    accepted: float | None

    @property
    def new_tokens(self) -> int:
        return sum(map(len, self.tokens))

    @property
    def tokens_per_second(self) -> float:
        """Of all rows together, the reading of the prompts included."""
        return self.new_tokens / (self.reading + self.seconds)

    @property
    def bandwidth(self) -> float:
        """Bytes/s that each device read; 0 where there was no step."""
        return self.bytes_per_step * self.steps / self.seconds if self.steps else 0.0

    def summary(self) -> str:
        """One line, such as `256 tokens, 512 tokens/s, 2.1 GB/s of weights and cache`."""
        line = f"{self.new_tokens} tokens, {self.tokens_per_second:.0f} tokens/s"
        if self.steps:
            line += f", {self.bandwidth / 1e9:.3g} GB/s of weights and cache"
            if self.peak is not None:
                line += f" ({100 * self.bandwidth / self.peak:.0f} % of the memory's)"
        if self.accepted is not None:
            line += f", {100 * self.accepted:.0f} % of the draft kept"
        return line

    def as_json(self) -> dict[str, Any]:
        """Figures of `summary`; `bandwidth_share` is null where the peak is not known."""
        return {
            "new_tokens": self.new_tokens,
            "reading_seconds": self.reading,
            "seconds": self.seconds,
            "steps": self.steps,
            "tokens_per_second": self.tokens_per_second,
            "bytes_per_step": self.bytes_per_step,
            "bytes_per_second": self.bandwidth,
            "bandwidth_share": None if self.peak is None else self.bandwidth / self.peak,
            "accepted": self.accepted,
        }


def of_run(run: Run, params: Any, tokenizer: text.Tokenizer) -> Trained:
    """The model of a run, with these weights.

    One token at a time fills no pipeline: the devices of `pipe` take rows of their own, each with
    the weights of all layers.
    """
    task = run.rule.task
    if task.mesh.shape["pipe"] > 1:
        task = dataclasses.replace(task, mesh=fold_pipe(task.mesh))
        places = parallel.shardings(task.mesh, task.variable_specs()["params"])
        params = jax.jit(lambda tree: tree, out_shardings=places)(params)
    specs = task.variable_specs()["params"]
    return Trained(task.model, params, specs, task.mesh, task.rules, tokenizer)


def tokenizer_of(run: Run, directory: str | None = None) -> text.Tokenizer:
    """The tokeniser in a directory; by default that beside the weights from which the run started,
    or bytes.

    Raises ValueError where the run's model has no tokens, FileNotFoundError where there is none.
    """
    model = run.config.model
    if "vocab_size" not in model:
        raise ValueError(f"model.family={model.family!r} generates no text; nearest: 'transformer'")
    if directory is None and model.pretrained and text.is_there(model.pretrained):
        directory = model.pretrained
    return text.Bytes(model.vocab_size) if directory is None else text.load(directory)


@dataclasses.dataclass(frozen=True)
class Generation:
    """What is to be made: up to `new_tokens` after each prompt, given as tokens.

    draft: a small model of the same tokens on the same mesh, which drafts `draft_length` tokens at
      a time (speculative decoding).
    sources: for an encoder-decoder, what its encoder reads for each prompt.
    Raises ValueError where the prompts do not fit, or the models do not go together.
    """

    trained: Trained
    prompts: list[list[int]]
    new_tokens: int
    how: Sampling
    draft: Trained | None = None
    draft_length: int = 4
    sources: list[list[int]] | None = None

    def __post_init__(self) -> None:
        if self.sources is not None and self.draft is not None:
            raise ValueError("--draft is for decoders; nearest: leave it out")
        for part in (self.trained, self.draft) if self.draft else (self.trained,):
            check_length(part.model.config, self.prompts, self.new_tokens)
        self._loop()  # checks its own

    def _loop(self) -> tuple[decode.Loop, Any, Any]:
        """The loop, its weights and their partition."""
        one, two = self.trained, self.draft
        if two is None:
            loop = decode.loop_of(one.model, self.new_tokens, self.how)
            return loop, one.params, one.specs
        speculative = Speculative(
            one.model, two.model, self.how, self.new_tokens, self.draft_length
        )
        params = {"model": one.params, "draft": two.params}
        return speculative, params, {"model": one.specs, "draft": two.specs}

    def complete(self, seed: int, show: Show | None = None) -> Completion:
        """Continue every prompt; the same text on every mesh for the same seed.

        show: is told every few steps; without it one program makes all the tokens.
        """
        trained, count = self.trained, len(self.prompts)
        loop, params, specs = self._loop()
        inputs = inputs_of(trained, self.prompts, seed)
        if self.sources is not None:
            read = inputs_of(trained, self.sources, seed)
            place = (trained.specs, trained.mesh, trained.rules)
            held = (trained.model, trained.params, *place, read.prompts_BP, read.lengths_B)
            inputs = inputs.replace(memory=encoding.memory(*held))
        on_mesh = decode.OnMesh(loop, trained.mesh, trained.rules, specs)
        start, advance = on_mesh.pieces(params, inputs)
        start = start.lower(params, inputs).compile()
        reading, (state, view) = _timed(start, params, inputs)
        advance = advance.lower(params, inputs, state, jnp.int32(0)).compile()
        chunk = max(1, CHUNK // (self.draft_length + 1)) if self.draft else CHUNK
        seconds, until = 0.0, 1
        while until < self.new_tokens and not view["done"].all():
            if show:
                show(self._rows(view), view["done"][:count].tolist())
            until = min(until + chunk, self.new_tokens) if show else self.new_tokens
            taken, (state, view) = _timed(advance, params, inputs, state, jnp.int32(until))
            seconds += taken
        made = self._rows(view)
        if show:
            show(made, [True] * count)
        return self._completion(made, state, view, reading, seconds)

    def _rows(self, view: Mapping[str, np.ndarray]) -> list[list[int]]:
        """The new tokens of each row so far."""
        pairs = enumerate(zip(self.prompts, view["ends"], strict=False))  # less those that fill up
        return [view["tokens"][i, len(prompt) : end].tolist() for i, (prompt, end) in pairs]

    def _completion(
        self,
        made: list[list[int]],
        state: Any,
        view: Mapping[str, np.ndarray],
        reading: float,
        seconds: float,
    ) -> Completion:
        tokenizer, count = self.trained.tokenizer, len(made)
        held = _bytes_per_step(self.trained, state.cache)
        accepted = None
        if self.draft is not None:
            held += self.draft_length * _bytes_per_step(self.draft, state.draft_cache)
            if offered := view["offered"][:count].sum():
                accepted = float(view["accepted"][:count].sum() / offered)
        pairs = zip(self.prompts, made, strict=True)
        return Completion(
            texts=[text.continuation(tokenizer, prompt, new) for prompt, new in pairs],
            tokens=made,
            reading=reading,
            seconds=seconds,
            steps=int(state.step.addressable_data(0)[0]) - 1,
            bytes_per_step=held,
            peak=hardware.memory_bandwidth(self.trained.mesh.devices.flat[0]),
            accepted=accepted,
        )


def check_length(model: Any, prompts: list[list[int]], new_tokens: int) -> None:
    """ValueError where a prompt and its continuation do not fit the context of a model's config,
    if it has a limit."""
    limit = getattr(model, "context_length", sys.maxsize)
    longest = max(len(prompt) for prompt in prompts)
    if new_tokens < 1:
        raise ValueError(f"--length={new_tokens}: must be at least 1")
    if longest + new_tokens > limit:
        raise ValueError(
            f"a prompt of {longest} tokens and {new_tokens} new ones exceed "
            f"model.context_length={limit}; nearest: "
            + (
                f"--length={limit - longest}"
                if longest < limit
                else f"a prompt of {limit - new_tokens} tokens"
            )
        )


def _timed(program: Any, *arguments: Any) -> tuple[float, tuple[Any, Any]]:
    """Seconds until its view is here; its state, and the view."""
    began = time.perf_counter()
    state, view = program(*arguments)
    view = jax.device_get(view)
    return time.perf_counter() - began, (state, view)


def over_rows(trained: Trained, *arrays: np.ndarray) -> list[jax.Array]:
    """Arrays with their rows over the batch axes of the mesh."""
    spread = parallel.shardings(trained.mesh, parallel.batch_spec(trained.mesh, 1))
    return [jax.device_put(x, spread) for x in arrays]


def inputs_of(trained: Trained, prompts: list[list[int]], seed: int) -> Inputs:
    """Prompts on the mesh, filled up to as many rows as divide over it."""
    shards = int(np.prod([trained.mesh.shape[axis] for axis in BATCH_AXES]))
    padded, lengths = text.pad(prompts, shards)
    numbers = np.arange(len(lengths), dtype=np.int32)
    prompts_BP, lengths_B, rows_B = over_rows(trained, padded, lengths, numbers)
    return Inputs(prompts_BP, lengths_B, jax.random.key_data(jax.random.key(seed)), rows_B)


def _bytes_per_step(trained: Trained, cache: Any) -> int:
    """What a device reads to make one token of each of its rows: its weights, those of its fsdp
    group, and its whole cache. Of tables that are only looked up, nothing is counted."""
    tables = LOOKED_UP - set(getattr(trained.model, "head_weights", ()))
    read = {name: leaf for name, leaf in trained.params.items() if name not in tables}

    def here(x: jax.Array) -> int:
        return int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize

    def gathered(x: jax.Array, spec: P) -> int:
        return here(x) * (trained.mesh.shape["fsdp"] if "fsdp" in spec else 1)

    weights = jax.tree.map(gathered, read, {name: trained.specs[name] for name in read})
    return sum(jax.tree.leaves(weights)) + sum(map(here, jax.tree.leaves(cache)))
