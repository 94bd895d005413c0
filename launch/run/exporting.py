"""Between published directories and work directories: what `launch.convert` does."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from launch.cluster import distributed
from launch.run import config as configs
from launch.run import environment, pretrained, published, restore
from launch.run.build import Run
from launch.run.checkpoint import Checkpoints, read_metadata
from launch.run.safetensors_files import check_target, read_json, write
from launch.run.state import abstract_state
from launch.run.workdir import WorkDir
from nn import names
from nn.pretrained import Format
from nn.pretrained.table import Table, flatten

DTYPES = ("float32", "bfloat16", "float16")


def import_(source: str, workdir: str, overrides: Sequence[str], spec: str | None) -> str:
    """Make a work directory of a published one; returns what to tell the user.

    Everything is read, onto the mesh, before anything is written.

    Raises:
      what `pretrained.run_of`, `first_state` and `WorkDir.check` raise; FileExistsError: a run
      with checkpoints is there.
    """
    start = time.perf_counter()
    run = pretrained.run_of(source, overrides, spec)
    work, text = WorkDir(workdir, jax.process_index()), configs.to_json(run.config)
    work.check(text)
    if work.checkpoints.is_dir() and any(work.checkpoints.iterdir()):
        raise FileExistsError(f"{work.path} holds checkpoints: name a directory that is not there")
    state = pretrained.first_state(run)
    came_from = pretrained.source_of(source)
    work.open(text, environment.describe())
    distributed.check_shared(work.path)
    with Checkpoints(work.checkpoints, keep=1) as checkpoints:
        metadata = {
            "config": run.config.to_dict(),
            "config_digest": configs.digest(run.config),
            "data": None,
            "versions": environment.versions(),
            "pretrained": came_from,
        }
        checkpoints.save(0, state, metadata)
    work.close("done", f"imported from {source}")
    count = sum(x.size for x in jax.tree.leaves(run.rule.weights(state)))
    seconds = time.perf_counter() - start
    return (
        f"{published.read(source).model_type} of {count:,} parameters, {came_from['dtype']}, "
        f"in {seconds:.1f} s: {work.path}"
    )


@dataclasses.dataclass(frozen=True)
class Export:
    """A model that is to be written: its table, and its leaves by the table's paths."""

    format: Format
    able: list[str]
    table: Table
    config: Any
    leaves: dict[str, jax.Array]
    dtypes: dict[str, np.dtype[Any]]  # of the tensors of the file
    beside: dict[str, dict[str, Any]]  # files that lay beside them when it was imported

    def sizes(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        return {n: (shape, self.dtypes[n]) for n, (shape, _) in self.table.sizes().items()}

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """One at a time; the host holds one leaf, or those that one tensor fuses."""
        for name, x in self.table.tensors(lambda path: _on_host(self.leaves[path])):
            yield name, x.astype(self.dtypes[name])


def export(
    workdir: str,
    target: str,
    overrides: Sequence[str],
    *,
    family: str,
    step: int | None,
    model_type: str,
    dtype: str,
    shard_size: int,
) -> str:
    """Write a published directory from a checkpoint; returns what to tell the user.

    Raises:
      what `restore.run_of`, `published.format_for` and `safetensors_files.write` raise.
    """
    if jax.process_index() == 0:
        check_target(target)
    if dtype:
        names.lookup("--dtype", dtype, dict.fromkeys(DTYPES))
    config = Path(workdir) / "config.json"
    if config.is_file() and "model_type" in read_json(config):
        raise ValueError(f"--from={workdir} is published already; name the work directory of a run")
    run = restore.run_of(workdir, overrides)
    if family and family != run.config.model.family:
        raise ValueError(
            f"--family={family!r} is not that of the run; nearest: {run.config.model.family!r}"
        )
    made = _prepare(run, workdir, step, model_type, dtype)
    kind = dtype or str(next(iter(made.dtypes.values())))
    content = made.format.config_to(made.config) | {"dtype": kind}
    if jax.process_index():
        for _ in made.tensors():  # takes part in the gathers
            pass
        return ""
    files = write(target, content, made.sizes(), made.tensors(), shard_size, made.beside)
    others = [name for name in made.able if name not in made.format.MODEL_TYPES]
    return (
        f"{made.format.MODEL_TYPES[0]}, {len(made.sizes())} tensors of {kind} in "
        f"{len(files)} file{'s' if len(files) > 1 else ''}: {Path(target).absolute()}"
        + (f" (--model-type could be {', '.join(others)} too)" if others else "")
    )


def _prepare(run: Run, workdir: str, step: int | None, model_type: str, dtype: str) -> Export:
    """Restore the weights, and nothing else of the state, and find the format."""
    abstract = abstract_state(run.rule)
    kept = "params" if abstract.average is None else "average"
    config = configs.section(run.config, "model")
    shapes = flatten({"params": abstract.params, **abstract.variables})
    recorded = read_metadata(Path(workdir) / "checkpoints", step)
    source = recorded["pretrained"] if "pretrained" in recorded else None
    wanted = model_type or ("" if source is None else source["model_type"])
    family = run.config.model.family
    format_, able = published.format_for(family, config, shapes, wanted)
    table = format_.table(config)
    with Checkpoints(Path(workdir) / "checkpoints", keep=None) as checkpoints:
        tree = {kept: getattr(abstract, kept), "variables": abstract.variables}
        saved, _ = checkpoints.restore(tree, step, partial=True)
    variables = flatten({"params": saved[kept], **saved["variables"]})
    leaves = published.leaves_of(table, variables)
    kinds: dict[str, Any] = {}
    for name, (_, path) in table.sizes().items():
        kinds[name] = leaves[path].dtype if path else table.constants[name].dtype
        if path and dtype:
            kinds[name] = jnp.dtype(dtype)
        elif path and source is not None:
            other = source["other_dtypes"]
            kinds[name] = jnp.dtype(other[name] if name in other else source["dtype"])
    beside = {}
    if source and "generation_config" in source and source["model_type"] in format_.MODEL_TYPES:
        beside[pretrained.GENERATION] = source["generation_config"]
    return Export(format_, able, table, config, leaves, kinds, beside)


def _on_host(x: jax.Array) -> np.ndarray:
    if x.is_fully_addressable:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
