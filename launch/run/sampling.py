"""Text from a trained model: prompts in, completions out, on the mesh of the run."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch.run import decode, text
from launch.run.build import Run
from launch.run.decode import Sampling
from nn import parallel
from nn.learning.task import Task
from nn.parallel.mesh import BATCH_AXES, fold_pipe


@dataclasses.dataclass(frozen=True)
class Completion:
    """Completions, one per prompt, and the speed of the loop without its compilation."""

    texts: list[str]
    new_tokens: int
    seconds: float


def check_length(run: Run, prompts: list[list[int]], new_tokens: int) -> None:
    """ValueError where a prompt and its continuation do not fit the model's context."""
    limit = run.config.model.context_length
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


def tokens_of(run: Run, prompts: list[str]) -> list[list[int]]:
    """Each prompt as tokens; an empty prompt starts from a line end."""
    if "vocab_size" not in run.config.model:
        raise ValueError(
            f"model.family={run.config.model.family!r} generates no text; nearest: 'transformer'"
        )
    return [text.encode(prompt or "\n", run.config.model.vocab_size) for prompt in prompts]


def complete(
    run: Run, params: Any, prompts: list[list[int]], new_tokens: int, how: Sampling, seed: int
) -> Completion:
    """Continue every prompt; the same text on every mesh for the same seed."""
    check_length(run, prompts, new_tokens)
    task, params = _without_stages(run.rule.task, params)
    shards = int(np.prod([task.mesh.shape[axis] for axis in BATCH_AXES]))
    padded, lengths = text.pad(prompts, shards)
    rows = np.arange(len(lengths), dtype=np.int32)
    specs = task.variable_specs()["params"]
    loop = decode.compiled(task.model, task.mesh, task.rules, specs, new_tokens, how)
    spread = parallel.shardings(task.mesh, parallel.batch_spec(task.mesh, 1))
    inputs = [jax.device_put(x, spread) for x in (padded, lengths, rows)]
    key = jax.random.key_data(jax.random.key(seed))
    run_loop = loop.lower(params, inputs[0], inputs[1], key, inputs[2]).compile()
    start = time.perf_counter()
    tokens, ends = jax.device_get(run_loop(params, inputs[0], inputs[1], key, inputs[2]))
    seconds = time.perf_counter() - start
    count = len(prompts)
    texts = [text.decode(tokens[i, lengths[i] : ends[i]]) for i in range(count)]
    made = int(jnp.sum(ends[:count] - lengths[:count]))
    return Completion(texts, made, seconds)


def _without_stages(task: Task, params: Any) -> tuple[Task, Any]:
    """One token at a time fills no pipeline: the devices of `pipe` take rows of their own, each
    with the weights of all layers."""
    if task.mesh.shape["pipe"] == 1:
        return task, params
    task = dataclasses.replace(task, mesh=fold_pipe(task.mesh))
    shardings = parallel.shardings(task.mesh, task.variable_specs()["params"])
    return task, jax.jit(lambda tree: tree, out_shardings=shardings)(params)
