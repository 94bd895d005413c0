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

from launch.run import shapes
from launch.run.build import Run
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
    """Shapes, dtypes and shardings of a training batch."""
    task = run.rule.task
    plain = shapes.batch_of(run.config, task)
    places: Any = parallel.shardings(task.mesh, task.batch_specs(plain))
    return {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=places[name])
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
        "parameters": _local_bytes(run, state.params),
        "optimizer_state": _local_bytes(run, state.opt_state),
        "batch": _local_bytes(run, batch),
    }
    kinds["other_arguments"] = _local_bytes(run, (state, batch)) - sum(kinds.values())
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


def _local_bytes(run: Run, tree: Any) -> int:
    """Bytes of one device's share of abstract arrays with shardings."""
    specs = jax.tree.map(lambda x: x.sharding.spec, tree)
    return shapes.local_bytes(tree, specs, run.rule.task.mesh.shape)


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
    """What the model needs for one step: see `launch.run.shapes.model_flops`."""
    state = jax.eval_shape(lambda: run.rule.init(0))
    return shapes.model_flops(run.config, run.rule.task, state, batch)
