"""The mesh, its axis names, and the table that maps the logical names of dimensions to them.

A mesh always has all six axes, slow links first; an axis of size 1 is treated as absent
everywhere, so the same module runs on a pod, on one device, and with no mesh at all.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from nn import names as naming

AXES = ("pipe", "data", "fsdp", "expert", "context", "tensor")
BATCH_AXES = ("data", "fsdp", "expert")  # examples are split over these
SEQUENCE_AXES = ("context",)  # positions of a sequence are split over these

# Logical name of a dimension of a weight -> the mesh axis that splits it.
WEIGHT_RULES: Mapping[str, str | None] = MappingProxyType(
    {
        "embed": "fsdp",  # the residual width
        "mlp": "tensor",  # hidden units between two dense layers
        "heads": "tensor",
        "kv_heads": "tensor",
        "head_dim": None,
        "vocab": "tensor",
        "expert": "expert",
        "layers": "pipe",
        "conv_in": "fsdp",
        "channels": "tensor",  # channels between two convolutions
        "state": None,
        "norm": None,
    }
)
# What the rules may map a name to besides "", which replicates. The other axes split examples or
# positions: a weight split over them would meet other examples on every shard.
WEIGHT_AXES = {"layers": ("pipe",), "expert": ("expert",)}
ANY_WEIGHT = ("fsdp", "tensor")
# How the axes are used: field of `Rules` -> its values.
USES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "schedule": ("gpipe", "interleaved", "1f1b"),
        "attention": ("ring", "ulysses", "gather"),
        "dispatch": ("auto", "gather", "all_to_all", "ragged"),
        "reduce_dtype": ("float32", "bfloat16"),
    }
)
# Dimensions that every shard holds whole where their size does not divide: the few key and value
# heads of grouped-query attention, and vocabularies such as GPT-2's 50,257.
REPLICABLE = ("kv_heads", "vocab")


@dataclasses.dataclass(frozen=True)
class Rules:
    """Which mesh axis splits which logical dimension, and how the axes of a mesh are used.

    weights: logical name -> mesh axis or None.
    sequence_parallel: between blocks, positions are also split over `tensor`
        (Korthikanti et al. 2022), so that norms and dropout are not computed twice.
    microbatches: parts of a batch that go through the pipeline one after another; example i is in
        part i mod microbatches, on any mesh.
    schedule: in which order stages work on them (`nn.parallel.schedule`).
    rounds: pieces of the depth per stage; more than one with schedule "interleaved" only.
    attention: how queries meet the keys of other shards of `context`: ring | ulysses | gather
        (Llama Team 2024, section 3.3.2: all keys and values are gathered).
    dispatch: how tokens meet the experts of other shards of `expert`:
        auto | gather | all_to_all | ragged.
    reduce_dtype: in which gradients are summed over the mesh where activations have fewer bits:
        float32 | bfloat16 (half the bytes, and a rounding per sum). Weights are gathered in the
        dtype of the activations.
    """

    weights: Mapping[str, str | None] = dataclasses.field(default_factory=lambda: WEIGHT_RULES)
    sequence_parallel: bool = False
    microbatches: int = 1
    schedule: str = "gpipe"
    rounds: int = 1
    attention: str = "ring"
    dispatch: str = "auto"
    reduce_dtype: str = "float32"

    def __post_init__(self) -> None:
        for field, values in USES.items():
            naming.lookup(f"mesh.{field}", getattr(self, field), dict.fromkeys(values))

    @property
    def layout(self) -> str:
        """How positions lie on `context`: see `nn.parallel.sequence`."""
        return "contiguous" if self.attention == "ulysses" else "zigzag"

    def axis(self, name: str | None) -> str | None:
        """The mesh axis of a logical name; raises ValueError on a name the table lacks."""
        return None if name is None else naming.lookup("logical axis", name, self.weights)


def parse_rules(text: str, sequence_parallel: bool, **use: Any) -> Rules:
    """`Rules` with overrides such as "mlp=,heads=fsdp": name=axis, an empty axis replicates.

    use: the other fields of `Rules`.
    Raises:
      ValueError: a name or an axis that is none, or an axis that cannot split this name.
    """
    table = dict(WEIGHT_RULES)
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, equals, axis = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise ValueError(f"mesh.rules: {part!r} is not of the form name=axis")
        naming.lookup("logical axis in mesh.rules", name, table)
        if axis:
            naming.lookup("mesh axis in mesh.rules", axis, dict.fromkeys(AXES))
        can = WEIGHT_AXES[name] if name in WEIGHT_AXES else ANY_WEIGHT
        if axis and axis not in can:
            raise ValueError(
                f"mesh.rules: {name}={axis}: weights can be split along {name!r} over "
                f"{' or '.join(can)} only; nearest: {name}={can[0]}"
            )
        table[name] = axis or None
    return Rules(MappingProxyType(table), sequence_parallel, **use)


_RULES: contextvars.ContextVar[Rules] = contextvars.ContextVar("rules", default=Rules())
_PLATFORM: contextvars.ContextVar[str] = contextvars.ContextVar("platform", default="")


@contextlib.contextmanager
def use_rules(rules: Rules, platform: str = "") -> Iterator[None]:
    """The rules that layers traced inside this block follow, and what they are compiled for."""
    token = _RULES.set(rules)
    try:
        with compiled_for(platform or _PLATFORM.get()):
            yield
    finally:
        _RULES.reset(token)


@contextlib.contextmanager
def compiled_for(platform: str) -> Iterator[None]:
    """Programs on a mesh without devices that are traced inside this block are for `platform`."""
    token = _PLATFORM.set(platform)
    try:
        yield
    finally:
        _PLATFORM.reset(token)


def current_rules() -> Rules:
    return _RULES.get()


def platform() -> str:
    """What the code that is being traced will run on: cpu | gpu | tpu.

    Inside `nn.parallel.spmd` that is the platform of the mesh, which need not be there when a
    program is compiled ahead of time.
    """
    return _PLATFORM.get() or jax.default_backend()


def platform_of(mesh: Any) -> str:
    """cpu | gpu | tpu: what a mesh consists of; `platform()` where that is no devices."""
    return str(mesh.devices.flat[0].platform) if isinstance(mesh, Mesh) else platform()


def mesh_shape(sizes: Mapping[str, int], devices: int) -> dict[str, int]:
    """The size of every axis, slow links first, for a number of devices.

    Args:
      sizes: axis -> size; missing axes have size 1, at most one may be -1 (what is left).
    Raises:
      ValueError: the sizes do not multiply to the number of devices; names a mesh that would.
    """
    shape = dict.fromkeys(AXES, 1)
    for axis, size in sizes.items():
        naming.lookup("mesh axis", axis, shape)
        if size == 0 or size < -1:
            raise ValueError(f"mesh.{axis}={size}: must be a positive size, or -1 for what is left")
        shape[axis] = size
    free = [axis for axis, size in shape.items() if size == -1]
    if len(free) > 1:
        raise ValueError(f"mesh.{free[0]} and mesh.{free[1]} are both -1: only one may be")
    fixed = math.prod(size for size in shape.values() if size != -1)
    if free and devices % fixed == 0:
        shape[free[0]] = devices // fixed
    if math.prod(shape.values()) != devices:
        wanted = " x ".join(f"{a}={s}" for a, s in shape.items() if s not in (1, -1)) or "1"
        raise ValueError(
            f"mesh {wanted} needs a multiple of {fixed} devices"
            f"{'' if free else f' (exactly {fixed})'} but there are {devices}; "
            f"nearest mesh that fits: {_nearest_mesh(shape, devices)}"
        )
    return shape


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices.

    Args:
      sizes: as in `mesh_shape`.
      devices: all devices by default.
    Raises:
      ValueError: see `mesh_shape`.
    """
    devices = list(jax.devices()) if devices is None else list(devices)
    shape = mesh_shape(sizes, len(devices))
    grid = np.asarray(devices).reshape(tuple(shape.values()))
    if devices[0].platform == "tpu" and len(devices) > 1:
        from jax.experimental import mesh_utils  # physical torus order; needs real TPU coordinates

        # An axis may take part of a side of the torus: 8 of a cube of 4 x 4 x 4, say.
        grid = mesh_utils.create_device_mesh(
            tuple(shape.values()), devices=devices, allow_split_physical_axes=True
        )
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _nearest_mesh(shape: Mapping[str, int], devices: int) -> str:
    """The wanted sizes, each cut to a divisor of what is left, with `data` taking the rest."""
    left, parts = devices, []
    for axis in ("tensor", "context", "expert", "pipe", "fsdp"):
        size = math.gcd(left, max(shape[axis], 1))
        left //= size
        if size > 1:
            parts.append(f"{axis}={size}")
    return " ".join([f"data={left}", *parts])


def fold_pipe(mesh: Mesh) -> Mesh:
    """The same devices in the same order, those of `pipe` as more of `data`."""
    pipe, data, *rest = mesh.devices.shape
    grid = mesh.devices.reshape(1, pipe * data, *rest)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def present(mesh: Mesh | None, axes: Sequence[str]) -> tuple[str, ...]:
    """Those of `axes` that the mesh really splits (size above 1)."""
    return () if mesh is None else tuple(a for a in axes if mesh.shape[a] > 1)


def weight_spec(
    path: str, shape: Sequence[int], names: Sequence[str | None], rules: Rules, mesh: Mesh
) -> P:
    """The partition of one weight.

    Raises:
      ValueError: one mesh axis would split two dimensions, or a size does not divide.
    """
    entries: list[str | None] = []
    for size, name in zip(shape, names, strict=True):
        axis = rules.axis(name)
        axis = axis if axis is not None and mesh.shape[axis] > 1 else None
        if axis is not None and name in REPLICABLE and size % mesh.shape[axis]:
            axis = None
        if axis is not None and axis in entries:
            raise ValueError(
                f"weight {path}: mesh axis {axis!r} splits two of its dimensions {tuple(names)}; "
                f"map one of them elsewhere with mesh.rules"
            )
        if axis is not None and size % mesh.shape[axis]:
            good = math.gcd(size, mesh.shape[axis])
            raise ValueError(
                f"weight {path}: dimension {name!r} of size {size} is not divisible by mesh.{axis}="
                f"{mesh.shape[axis]}; nearest size of the axis that divides it: {good}"
            )
        entries.append(axis)
    return P(*entries)


def batch_spec(mesh: Mesh, ndim: int, sequence_dim: int | None = None) -> P:
    """Examples over data, fsdp and expert; positions, where there are any, over context."""
    entries: list[tuple[str, ...] | None] = [present(mesh, BATCH_AXES) or None]
    entries += [None] * (ndim - 1)
    if sequence_dim is not None and sequence_dim < ndim:
        entries[sequence_dim] = present(mesh, SEQUENCE_AXES) or None
    return P(*entries)


def row_shares(mesh: Mesh) -> tuple[list[int], int]:
    """Which of how many equal shares of the rows of a batch the devices of this process hold.

    As few and large ones as will do: one of one where this process is alone. Processes whose
    devices hold the same rows, of another stage or part of a matrix, say, get the same shares.
    """
    count = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    places = NamedSharding(mesh, batch_spec(mesh, 1)).addressable_devices_indices_map((count,))
    held = {(index[0].start or 0) for index in places.values() if index is not None}
    size = max(
        n
        for n in range(1, count + 1)
        if count % n == 0 and len({i // n for i in held}) * n == len(held)
    )
    return sorted({i // size for i in held}), count // size


def shardings(mesh: Mesh, specs: Any) -> Any:
    """`NamedSharding`s for a tree of `PartitionSpec`s."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P)
    )
