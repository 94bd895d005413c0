"""Machines that are not there: the devices of a TPU slice, of GPU nodes or of simulated CPUs.

    v5p:4x4x4   a TPU slice, chips along each side of its torus: v4, v5e, v5p, v6e, 7x
    h200:8x8    8 hosts of 8 GPUs each: h100, h200
    cpu:8       8 simulated CPU devices

A program is compiled for them by libtpu (extra `tpu`) and by the CUDA plug-in (extra `cuda12` or
`cuda13`); neither needs the accelerator. `parse` checks a name and loads nothing.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import re
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies

from launch.cluster import distributed, hardware
from launch.cluster.hardware import Chip
from nn import names

TPUS = {"v4": "v4", "v5e": "v5e", "v5p": "v5p", "v6e": "v6e", "7x": "v7x"}  # name -> row of CHIPS
GPUS = {"h100": "h100", "h200": "h200"}
ALIASES = {"v7x": "7x", "tpu7x": "7x", "tpu7": "7x", "v5litepod": "v5e"}
SIDES = {2: (1, 2, 4, 8, 16), 3: (1, 2, *range(4, 65, 4))}  # chips along a side, by dimensions
CPU_LIMIT = 512  # simulated devices
EXAMPLES = (
    *("v4:4x4x8", "v5e:8x16", "v5p:4x4x4", "v5p:16x16x16", "v6e:16x16", "7x:4x4x4"),
    *("h100:1x8", "h200:8x8", "cpu:8"),
)


@dataclasses.dataclass(frozen=True)
class Topology:
    """A machine by name.

    kind: v4 ... 7x, h100, h200 or cpu. shape: chips along each side; hosts and GPUs of each; CPUs.
    """

    kind: str
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.kind}:{'x'.join(map(str, self.shape))}"

    @property
    def platform(self) -> str:
        """tpu, gpu or cpu."""
        return "tpu" if self.kind in TPUS else "gpu" if self.kind in GPUS else "cpu"

    @property
    def row(self) -> str | None:
        """The name of its row of `hardware.CHIPS`; None for CPUs."""
        rows = TPUS | GPUS
        return rows[self.kind] if self.kind in rows else None

    @property
    def chip(self) -> Chip | None:
        """Its row of `hardware.CHIPS`; None for CPUs."""
        return None if self.row is None else hardware.chip(self.row)

    @property
    def size(self) -> int:
        """JAX devices."""
        return math.prod(self.shape) * (self.chip.devices if self.chip else 1)


def parse(name: str) -> Topology:
    """The machine that `name` means; loads nothing.

    Raises ValueError, with the rule and the nearest name that works.
    """
    kind, _, sizes = name.strip().lower().partition(":")
    kind = ALIASES.get(kind, kind)
    names.lookup("kind of --topology", kind, TPUS | GPUS | {"cpu": "cpu"})
    if not re.fullmatch(r"\d+(x\d+)*", sizes):
        raise ValueError(
            f"--topology={name}: after {kind}: come sizes with x between; "
            f"nearest: {next(e for e in EXAMPLES if e.startswith(kind))}"
        )
    found = Topology(kind, tuple(map(int, sizes.split("x"))))
    nearest, rule = _nearest(found)
    if nearest != found:
        raise ValueError(f"--topology={name}: {rule}; nearest: {nearest.name}")
    return found


def listing() -> str:
    """The kinds of machines, their rules and an example of each."""
    lines = []
    for kind in (*TPUS, *GPUS, "cpu"):
        example = parse(next(e for e in EXAMPLES if e.startswith(f"{kind}:")))
        lines.append(f"{example.name:<14}{example.size:>5} devices; {_nearest(example)[1]}")
    return "\n".join(lines)


def _nearest(wanted: Topology) -> tuple[Topology, str]:
    """The machine most like the one that is wanted, and the rule that machines of its kind obey."""
    chip, shape = wanted.chip, wanted.shape
    if chip is None:
        count = min(max(math.prod(shape), 1), CPU_LIMIT)
        return Topology("cpu", (count,)), f"cpu:N is for N from 1 to {CPU_LIMIT} devices"
    if wanted.platform == "gpu":
        hosts, gpus = (*shape, 1)[:2] if len(shape) > 1 else (1, shape[0])
        near = (max(hosts, 1), min(max(gpus, 1), chip.domain))
        return (
            Topology(wanted.kind, near),
            f"{wanted.kind}:HxG is H hosts of G GPUs, G from 1 to {chip.domain}",
        )
    sides = SIDES[chip.torus]
    rule = (
        f"{wanted.kind} slices have {chip.torus} sides of {', '.join(map(str, sides[:5]))}"
        f"{'' if chip.torus == 2 else ' or another multiple of 4'} chips, "
        f"the first two of at least 2 unless there is one chip, and at most {chip.domain} in all"
    )
    given = (*shape, *(1,) * chip.torus)[: chip.torus]
    given = given if len(shape) <= chip.torus else (*given[:-1], math.prod(shape[chip.torus - 1 :]))
    choices = itertools.product(*(_near(side, sides) for side in given))
    allowed = [c for c in choices if _slice(c) and math.prod(c) <= chip.domain]
    best = min(allowed, key=lambda c: (_distance(c, given), c), default=(2,) * chip.torus)
    return Topology(wanted.kind, best), rule


def _near(side: int, sides: tuple[int, ...]) -> list[int]:
    """The few allowed sides about this one, and the smallest ones."""
    return sorted({*sorted(sides, key=lambda s: abs(s - side))[:3], 1, 2, 4, 8, 16})


def _slice(shape: tuple[int, ...]) -> bool:
    return math.prod(shape) == 1 or min(shape[:2]) >= 2


def _distance(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    return sum(abs(math.log(x / max(y, 0.5))) for x, y in zip(a, b, strict=True))


def devices(topology: Topology) -> list[Any]:
    """The JAX devices of a machine, none of which is there; starts no accelerator.

    Call it before JAX has made any device.
    Raises ValueError where the compiler of the platform is not installed, with what to install.
    """
    if topology.platform == "cpu":
        distributed.simulate(topology.shape[0])
        found = jax.devices()
        if len(found) < topology.size:
            raise ValueError(
                f"--topology={topology.name}: JAX has already started with {len(found)} devices"
            )
        return list(found[: topology.size])
    jax.config.update("jax_platforms", "cpu")  # no accelerator of this machine is touched
    made = _tpus(topology) if topology.platform == "tpu" else _gpus(topology)
    if len(made) != topology.size:
        raise ValueError(
            f"--topology={topology.name}: the compiler makes {len(made)} devices, not "
            f"{topology.size}; this version of it does not suit"
        )
    return made


def _tpus(topology: Topology) -> list[Any]:
    # libtpu would look for a TPU host's metadata service, and for a lock of another process.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    name = topology.name.replace("7x:", "tpu7x:") if topology.kind == "7x" else topology.name
    options: dict[str, Any] = {}
    if topology.kind == "v4":
        options["chip_config_name"] = "megacore"  # both cores of a chip are one device
    if math.prod(topology.shape) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return list(topologies.get_topology_desc(name, "tpu", **options).devices)
    except RuntimeError as error:
        if "not installed" in str(error):
            raise ValueError(
                f"--topology={topology.name} needs libtpu: pip install 'tessera[tpu]' -c "
                "constraints.txt, or let TPU_LIBRARY_PATH name a libtpu.so"
            ) from error
        raise ValueError(f"--topology={topology.name}: libtpu refuses: {error}") from error


def _gpus(topology: Topology) -> list[Any]:
    assert topology.chip is not None
    hosts, each = topology.shape
    try:
        found = topologies.get_topology_desc(
            "",
            "cuda",
            target_config=target_config(topology.kind, topology.chip),
            topology=f"1x{hosts}x{each}",
        )
    except (NotImplementedError, RuntimeError) as error:
        if "not implemented" in str(error):
            raise ValueError(
                f"--topology={topology.name} needs the CUDA plug-in of this JAX: "
                "pip install 'tessera[cuda13]' -c constraints.txt"
            ) from error
        raise ValueError(f"--topology={topology.name}: the plug-in refuses: {error}") from error
    return list(found.devices)


def target_config(name: str, chip: Chip) -> str:
    """A Hopper GPU as XLA's `GpuTargetConfigProto` in text form.

    Sizes of the SXM5 parts: NVIDIA H100 white paper, table 3, and CUDA programming guide,
    technical specifications of compute capability 9.0.
    """
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  core_count: 132
  fpus_per_core: 128
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: {2**31 - 1}
  block_dim_limit_y: {2**16 - 1}
  block_dim_limit_z: {2**16 - 1}
  registers_per_core_limit: {2**16}
  registers_per_block_limit: {2**16}
  shared_memory_per_core: {228 * 2**10}
  shared_memory_per_block: {48 * 2**10}
  shared_memory_per_block_optin: {227 * 2**10}
  l2_cache_size: {50 * 2**20}
  clock_rate_ghz: 1.98
  memory_bandwidth: {round(chip.memory_bandwidth)}
  device_memory_size: {round(chip.memory)}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{name.upper()}"
"""


def bandwidth(chip: Chip, topology: Topology, group: np.ndarray) -> float:
    """Bytes per second that a device sends within a group of devices that communicate.

    group: JAX devices. On a torus every side over which the group reaches gives two links where it
    closes to a ring, else one; a group that leaves out chips in between shares their links. Among
    GPUs the switch of a host joins all; beyond it each GPU has its own network card, and a ring
    over several hosts uses those of all its members on a host.
    """
    members = list(np.ravel(group))
    if topology.platform == "gpu":
        hosts = len({device.process_index for device in members})
        inside = chip.links * chip.link_bandwidth
        if hosts == 1 or chip.network_bandwidth is None:
            return inside
        return min(inside, chip.network_bandwidth * len(members) / hosts)
    where = np.asarray([device.coords for device in members])
    links = 0.0
    for side, along in enumerate(where.T):
        places = np.unique(along)
        if len(places) == 1:
            continue
        length = topology.shape[side]
        ring = len(places) == length and length % chip.ring == 0
        links += (2 if ring else 1) / np.diff(places).min()
    return (links or chip.links) * chip.link_bandwidth / chip.devices
