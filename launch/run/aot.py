"""The train step of a config, compiled ahead of time for devices that need not be there.

Nothing is allocated and no data set is opened where the config says what a batch looks like.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch.run.build import Run, loader, open_data
from launch.run.state import abstract_state
from launch.run.step import train_step
from nn import parallel
from nn.analysis import flops
from nn.analysis.flops import Flops

# Collectives of a TPU that go on while products run; off by default, and of all-gathers only.
ASYNC_TPU = {
    "xla_enable_async_all_gather": True,
    "xla_enable_async_collective_permute": True,
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
    "xla_tpu_overlap_compute_collective_tc": True,
}
# On a GPU collectives are asynchronous by default, and those of a loop wait at its start: this one
# gathers what the next iteration needs.
ASYNC_GPU = {"xla_gpu_enable_pipelined_all_gather": True}
ASYNC: dict[str, dict[str, bool]] = {"tpu": ASYNC_TPU, "gpu": ASYNC_GPU, "cpu": {}}

SHORT = 64  # positions of a row that attention does in one dense product, whatever it does else
PIECE = re.compile(r"[\w.]+=[\w.\-]+")
WORDS = {"true": True, "false": False}


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled step: compiled is None where it does not fit, and `problem` says why.

    seconds: of trace, lower and compile.
    """

    compiled: Any
    seconds: Mapping[str, float]
    problem: str = ""


def compiler_options(platform: str, asynchronous: bool, text: str) -> dict[str, Any]:
    """The flags for asynchronous collectives of a platform, and those of `--xla=flag=value,...`.

    Raises ValueError for a text that is not of this form.
    """
    options: dict[str, Any] = dict(ASYNC[platform]) if asynchronous else {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        if not PIECE.fullmatch(part):
            raise ValueError(f"--xla: {part!r} is not of the form flag=value; nearest: xla_x=true")
        name, _, value = part.partition("=")
        number = int(value) if re.fullmatch(r"-?\d+", value) else value
        options[name] = WORDS[value] if value in WORDS else number
    return options


def abstract_batch(run: Run) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and shardings of a training batch.

    Those of rows of tokens and of pictures follow from the config; other data sets are opened.
    """
    config, task = run.config, run.rule.task
    rows, data = config.data.batch_size, config.data
    shapes: dict[str, tuple[tuple[int, ...], Any]]
    if config.objective.name == "next_token":
        names = ("inputs", "targets", "segments", "positions", "mask")
        kinds = {name: np.float32 if name == "mask" else np.int32 for name in names}
        shapes = {name: ((rows, data.sequence_length), kinds[name]) for name in names}
    elif config.objective.name == "classify" and "image_size" in data:
        picture = (rows, data.image_size, data.image_size, data.channels)
        shapes = {"inputs": (picture, np.float32), "labels": ((rows,), np.int32)}
    else:
        batch = loader(config, open_data(config, "train"), train=True).batch(0)
        shapes = {name: ((rows, *x.shape[1:]), x.dtype) for name, x in batch.items()}
    plain = {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}
    shardings: Any = parallel.shardings(task.mesh, task.batch_specs(plain))
    return {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings[name])
        for name, x in plain.items()
    }


def compile_step(run: Run, batch: Any, options: Mapping[str, Any]) -> Program:
    """Lower and compile `train_step` for the devices of the run's mesh.

    Raises ValueError for a compiler option that this compiler does not know.
    """
    platform = run.rule.task.mesh.devices.flat[0].platform
    times = [time.perf_counter()]
    traced: Any = train_step(run.rule).trace(abstract_state(run.rule), batch)  # type: ignore[attr-defined]
    times.append(time.perf_counter())
    lowered = traced.lower(lowering_platforms=("cuda" if platform == "gpu" else platform,))
    times.append(time.perf_counter())
    compiled, problem = None, ""
    try:
        compiled = lowered.compile(compiler_options=dict(options))
    except jax.errors.JaxRuntimeError as error:
        problem = " ".join(str(error).split())
        if "No such compile option" in problem or "flag" in problem[:200].lower():
            raise ValueError(f"--xla: {problem[:200]}") from error
        if "RESOURCE_EXHAUSTED" not in problem:
            raise
    times.append(time.perf_counter())
    spans = zip(("trace", "lower", "compile"), times, times[1:], strict=False)
    seconds = {name: round(end - start, 3) for name, start, end in spans}
    return Program(compiled, seconds, problem)


def memory(run: Run, batch: Any, program: Program) -> dict[str, int]:
    """Bytes on one device by kind.

    parameters, optimizer_state, batch, other_arguments: the shares that its arguments take.
    padding: what their layout adds. output: results that reuse no argument. temporaries:
    activations, gradients, gathered weights and whatever else lives within the step. total: the
    sum. peak: XLA's figure of what is held at once. needed: what a device must have; on a TPU,
    whose temporaries count space that others use at another time, peak and code, else the total.
    Of a step that does not fit, `needed` is what the compiler's message says.
    """
    state = abstract_state(run.rule)
    kinds = {
        "parameters": _local_bytes(state.params) if hasattr(state, "params") else 0,
        "optimizer_state": _local_bytes(state.opt_state) if hasattr(state, "opt_state") else 0,
        "batch": _local_bytes(batch),
    }
    kinds["other_arguments"] = _local_bytes((state, batch)) - sum(kinds.values())
    if program.compiled is None:
        return kinds | {"needed": _needed(program.problem, sum(kinds.values()))}
    stats = program.compiled.memory_analysis()
    kinds["padding"] = stats.argument_size_in_bytes - sum(kinds.values())
    kinds["output"] = stats.output_size_in_bytes - stats.alias_size_in_bytes
    kinds["temporaries"] = stats.temp_size_in_bytes
    kinds["code"] = stats.generated_code_size_in_bytes
    total, peak = sum(kinds.values()), stats.peak_memory_in_bytes
    on_tpu = run.rule.task.mesh.devices.flat[0].platform == "tpu"
    needed = peak + kinds["code"] if on_tpu else total
    return kinds | {"total": total, "peak": peak, "needed": needed}


def _local_bytes(tree: Any) -> int:
    """Bytes of one device's share of abstract arrays with shardings."""
    return sum(
        int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )


def _needed(problem: str, arguments: int) -> int:
    """The bytes that a compiler's message says a step needs; 0 where it names none.

    libtpu says `Used 43.1G of 31.25G hbm`, of everything, or `HLO temporaries (24.46G) exceeds`.
    """
    units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    for pattern, more in (
        (r"[Uu]sed ([\d.]+)([KMGT]?)i?B? of", 0),
        (r"temporaries \(([\d.]+)([KMGT]?)i?B?\) exceed", arguments),
    ):
        if found := re.search(pattern, problem):
            return round(float(found[1]) * units[found[2]]) + more
    return 0


def executed_flops(run: Run, batch: Any) -> Flops:
    """What the step computes on all devices together, what is computed twice included."""
    return flops.count(run.rule.update, abstract_state(run.rule), batch)


def model_flops(run: Run, batch: Any) -> Flops:
    """What the model needs for one step: nothing twice, and attention as dense products.

    The convention for attention must not depend on how it is computed, so it is counted on a short
    row, where it is one dense product, and scaled by the square of the length.
    """
    needed = _needed_flops(run, batch)
    length = run.config.data.sequence_length
    if "attention" not in needed.matmul or run.config.objective.name != "next_token":
        return needed
    short = min(length, SHORT)
    row = {n: jax.ShapeDtypeStruct((x.shape[0], short), x.dtype) for n, x in batch.items()}
    dense = _needed_flops(run, row).matmul["attention"] * length**2 // short**2
    return dataclasses.replace(needed, matmul={**needed.matmul, "attention": dense})


def _needed_flops(run: Run, batch: Any) -> Flops:
    """FLOPs of the loss and its gradient on one device."""
    task = run.rule.task
    options = task.objective_config
    if hasattr(options, "chunks"):  # they change nothing, and need not divide a short row
        options = dataclasses.replace(options, chunks=1)

    def loss(params: Any, batch: Any) -> jax.Array:
        key = jax.random.key(0)
        variables = {"params": params, **state.variables}
        sums, _ = task.objective.sums(options, task.model, variables, batch, key, train=True)
        return sums["loss"][0]

    state = jax.eval_shape(lambda: run.rule.init(0))
    # Zeros of a batch are made inside: the statistics of a model are constants to its gradient.
    state = state.replace(
        variables=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state.variables)
    )
    plain = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
    return flops.train_step_flops(loss, state.params, plain).model
