"""Published weights onto a mesh: streamed from disk, a run's first state.

    run, state = load(directory)                     # to evaluate, to generate
    run, state = load(directory, ["mesh.tensor=4"])  # on another mesh

Each process reads what its own devices hold and nothing else, tensor by tensor, and holds no more
than one piece of a leaf of `CHUNK` bytes, or one layer of it, on its way to a device.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch.cluster import distributed
from launch.run import config as configs
from launch.run import published, resolve
from launch.run.build import Run, build
from launch.run.safetensors_files import Tensors, read_json
from launch.run.state import abstract_state, initial_state
from nn import parallel
from nn.learning import tune
from nn.learning.task import Task
from nn.pretrained.table import Leaf, flatten, nest

CHUNK = 1 << 28  # bytes
GENERATION = "generation_config.json"  # special tokens, and how the model is meant to write
REMEMBERED = 1 << 16  # bytes of such a file at most, lest checkpoints carry a stranger


def load(directory: str, overrides: Sequence[str] = (), spec: str | None = None) -> tuple[Run, Any]:
    """`run_of` and its `first_state`, without room for an optimizer's: to evaluate and generate."""
    run = run_of(directory, ["optimizer.name=sgd", *overrides], spec)
    return run, first_state(run)


def run_of(directory: str, overrides: Sequence[str] = (), spec: str | None = None) -> Run:
    """The run of a published model, on the devices there are; reads config.json only.

    Args:
      overrides: "section.key=value", as `launch.run.config.load` takes them.
      spec: an experiment, for what config.json does not say; by default experiments/base.py, with
        the family's usual objective and sequences no longer than the model's context.
    Raises:
      FileNotFoundError, ValueError: what `published.read`, `config.load` and `build` raise.
    """
    model = published.read(directory)
    own = [f"model.family={model.format.FAMILY}", f"model.pretrained={directory}"]
    if spec is None:
        usual = resolve.module("model", model.format.FAMILY).OBJECTIVES[0]
        own.append(f"objective.name={usual}")
    if spec is None and hasattr(model.config, "context_length"):
        default = configs.defaults().data.sequence_length
        own.append(f"data.sequence_length={min(default, model.config.context_length)}")
    return build(configs.load(spec, [*own, *overrides]))


def first_state(run: Run) -> Any:
    """The first state of a run: of its seed, or with the weights of `model.pretrained`.

    Raises:
      FileNotFoundError, ValueError: the directory does not hold the model of the config.
    """
    directory, rule = run.config.model.pretrained, run.rule
    if not directory:
        return initial_state(rule, run.config.seed)
    shardings = parallel.shardings(rule.task.mesh, rule.state_specs())
    values = variables(directory, run)

    def init(values: Any) -> Any:
        # By fields: `asdict` would copy the model.
        task = {f.name: getattr(rule.task, f.name) for f in dataclasses.fields(rule.task)}
        given = _Given(**task, values=values)
        return dataclasses.replace(rule, task=given).init(run.config.seed)

    return jax.jit(init, out_shardings=shardings, donate_argnums=0)(values)


@dataclasses.dataclass(frozen=True)
class _Given(Task):
    """A task some of whose variables, by collection, are those of a file."""

    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def variables(self, seed: int) -> dict[str, Any]:
        own = super().variables(seed)
        _, factors = tune.without_factors(own["params"])  # of LoRA, which no file has
        return {**own, **self.values, "params": tune.join(self.values["params"], factors)}


def variables(directory: str, run: Run) -> dict[str, Any]:
    """The variables of a directory on the mesh of a run, by collection: {"params": ...}."""
    model = published.read(directory)
    model.check_family(run.config.model.family)
    tensors = Tensors(model.directory)
    layout = {n: (str(p.dtype), p.shape, p.path.name) for n, p in sorted(tensors.places.items())}
    distributed.check_same(f"what lies in {model.directory}", json.dumps(layout))
    config = configs.section(run.config, "model")
    try:
        table = model.format.table(config, tensors.keys())
        leaves = table.leaves(tensors)
    except ValueError as error:
        raise ValueError(f"{model.directory}: {error}") from error
    state = abstract_state(run.rule)
    params, _ = tune.without_factors(state.params)
    wanted = published.leaves_of(table, flatten({"params": params, **state.variables}))
    table.check(wanted)  # a format that does not fit its family
    found = nest({path: to_mesh(leaf, wanted[path]) for path, leaf in leaves.items()})
    return found if "params" in found else {"params": found}


def to_mesh(leaf: Leaf, target: jax.ShapeDtypeStruct) -> jax.Array:
    """A leaf as a global array: every device is given its part, and a part is read once.

    target: shape, dtype and sharding.
    """
    sharding: Any = target.sharding
    parts: dict[Any, jax.Array] = {}
    arrays = []
    for device, index in sharding.addressable_devices_indices_map(target.shape).items():
        key = tuple((part.start, part.stop) for part in index)
        if key not in parts:
            parts[key] = _part(leaf, index, target.dtype, device)
        arrays.append(jax.device_put(parts[key], device))
    return jax.make_array_from_single_device_arrays(target.shape, sharding, arrays)


def _part(leaf: Leaf, index: tuple[slice, ...], dtype: Any, device: jax.Device) -> jax.Array:
    """leaf[index] on a device, where it is put together from chunks of its first dimension."""
    ranges = [range(size)[part] for size, part in zip(leaf.shape, index, strict=True)]
    shape = tuple(map(len, ranges))
    row = max(1, math.prod(shape[1:]) * np.dtype(dtype).itemsize)
    rows = max(1, CHUNK // row)
    if not shape or rows >= shape[0]:
        return jax.device_put(leaf.read(index, dtype), device)
    whole = jnp.zeros(shape, dtype, device=device)
    for start in range(0, shape[0], rows):
        numbers = ranges[0][start : start + rows]
        chunk = leaf.read((slice(numbers.start, numbers.stop), *index[1:]), dtype)
        whole = _write(whole, jax.device_put(chunk, device), start)
        whole.block_until_ready()  # else chunks would pile up on the host
    return whole


@jax.jit(donate_argnums=0)
def _write(whole: jax.Array, chunk: jax.Array, start: Any) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(whole, chunk, start, 0)


def source_of(directory: str) -> dict[str, Any]:
    """What a checkpoint remembers of where its model came from, so that it is written likewise:
    model_type, the dtype of most tensors, and those of the others by name; generation_config where
    the directory has that file."""
    kinds = {name: str(place.dtype) for name, place in Tensors(directory).places.items()}
    common, _ = collections.Counter(kinds.values()).most_common(1)[0]
    file = Path(directory).expanduser() / GENERATION
    small = file.is_file() and file.stat().st_size <= REMEMBERED
    return {
        "model_type": published.read(directory).format.MODEL_TYPES[0],
        "dtype": common,
        "other_dtypes": {name: kind for name, kind in kinds.items() if kind != common},
        **({"generation_config": read_json(file)} if small else {}),
    }
