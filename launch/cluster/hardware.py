"""What the chips can do, as data: peaks, memory and links, each row with its source.

All figures are per chip, dense (no sparsity), in SI units. A float32 product runs at JAX's default
precision: as one bfloat16 pass on TPU, as TensorFloat-32 on NVIDIA's chips. Peaks are what the
vendor states; what a large product reaches is lower (H200: 769-798 of 989 TFLOP/s measured).
"""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nn import names

TERA, GIGA = 1e12, 1e9
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of chip; None where it has no such unit or no figure is published."""

    kinds: tuple[str, ...]  # how `jax.Device.device_kind` starts
    bfloat16: float  # FLOP/s, float16 too
    float32: float  # FLOP/s at JAX's default precision
    int8: float | None  # operations/s
    float8: float | None  # FLOP/s
    memory: float  # bytes
    memory_bandwidth: float  # bytes/s
    links: int  # to other chips of its pod or node
    link_bandwidth: float  # bytes/s of one link, one way
    torus: int  # dimensions in which links go to neighbours; 0: a switch joins all
    domain: int  # chips that these links join
    network_bandwidth: float | None  # bytes/s to chips outside, one way
    source: str
    devices: int = 1  # JAX devices per chip

    @property
    def platform(self) -> str:
        """gpu | tpu: what JAX calls it."""
        return "tpu" if self.torus else "gpu"

    @property
    def ring(self) -> int:
        """Sides of its torus close to rings where they are multiples of this: cubes of 4 chips are
        joined by switches; a flat torus is a whole pod, of 16 chips a side."""
        return 4 if self.torus == 3 else 16

    def peak(self, dtype: Any) -> float | None:
        """FLOP/s of one JAX device for products of `dtype`; None where it has no such unit."""
        name = np.dtype(dtype).name
        peaks: dict[str, float | None] = {
            **dict.fromkeys(("bfloat16", "float16"), self.bfloat16),
            **dict.fromkeys(("int8", "uint8"), self.int8),
            "float32": self.float32,
        }
        whole = self.float8 if name.startswith("float8") else peaks.get(name)
        return None if whole is None else whole / self.devices


_CLOUD = "docs.cloud.google.com/tpu/docs"
_BOOK = "scaling-book tpus.md (links)"

CHIPS: dict[str, Chip] = {
    "v4": Chip(
        kinds=("TPU v4",),
        bfloat16=275 * TERA,
        float32=275 * TERA,
        int8=275 * TERA,
        float8=None,
        memory=32 * GIB,
        memory_bandwidth=1200 * GIGA,
        links=6,
        link_bandwidth=45 * GIGA,
        torus=3,
        domain=4096,
        network_bandwidth=6.25 * GIGA,
        source=f"{_CLOUD}/v4; {_BOOK}, network 25 GB/s a host of 4",
    ),
    "v5e": Chip(
        kinds=("TPU v5e", "TPU v5 lite"),
        bfloat16=197 * TERA,
        float32=197 * TERA,
        int8=394 * TERA,
        float8=None,
        memory=16 * GIB,
        memory_bandwidth=819 * GIGA,
        links=4,
        link_bandwidth=50 * GIGA,
        torus=2,
        domain=256,
        network_bandwidth=3.125 * GIGA,
        source=f"{_CLOUD}/v5e (network 6.4 Tbit/s a pod of 256); {_BOOK}",
    ),
    "v5p": Chip(
        kinds=("TPU v5p", "TPU v5"),
        bfloat16=459 * TERA,
        float32=459 * TERA,
        int8=918 * TERA,
        float8=None,
        memory=95 * GIB,
        memory_bandwidth=2765 * GIGA,
        links=6,
        link_bandwidth=100 * GIGA,
        torus=3,
        domain=8960,
        network_bandwidth=6.25 * GIGA,
        source=f"{_CLOUD}/v5p (network 50 Gbit/s); int8: jax tpu_info; {_BOOK}",
    ),
    "v6e": Chip(
        kinds=("TPU v6e", "TPU v6 lite"),
        bfloat16=918 * TERA,
        float32=918 * TERA,
        int8=1836 * TERA,
        float8=918 * TERA,
        memory=32 * GIB,
        memory_bandwidth=1638 * GIGA,
        links=4,
        link_bandwidth=100 * GIGA,
        torus=2,
        domain=256,
        network_bandwidth=None,
        source=f"{_CLOUD}/v6e and /tpu7x (8 bit); {_BOOK}",
    ),
    "v7x": Chip(
        kinds=("TPU7x", "TPU v7x"),
        bfloat16=2307 * TERA,
        float32=2307 * TERA,
        int8=None,
        float8=4614 * TERA,
        memory=192 * GIB,
        memory_bandwidth=7380 * GIGA,
        links=6,
        link_bandwidth=100 * GIGA,
        torus=3,
        domain=9216,
        network_bandwidth=None,
        devices=2,
        source=f"{_CLOUD}/tpu7x; links: 1200 GB/s both ways over 6",
    ),
    "a100": Chip(
        kinds=("NVIDIA A100-SXM4-80GB", "A100-SXM4-80GB", "NVIDIA A100-SXM-80GB"),
        bfloat16=312 * TERA,
        float32=156 * TERA,
        int8=624 * TERA,
        float8=None,
        memory=80 * GIGA,
        memory_bandwidth=2039 * GIGA,
        links=12,
        link_bandwidth=25 * GIGA,
        torus=0,
        domain=8,
        network_bandwidth=25 * GIGA,
        source="NVIDIA A100 80GB SXM data sheet; network: DGX A100, 200 Gbit/s a GPU",
    ),
    "h100": Chip(
        kinds=("NVIDIA H100 80GB HBM3", "NVIDIA H100 SXM"),
        bfloat16=989 * TERA,
        float32=494.5 * TERA,
        int8=1979 * TERA,
        float8=1979 * TERA,
        memory=80 * GIGA,
        memory_bandwidth=3350 * GIGA,
        links=18,
        link_bandwidth=25 * GIGA,
        torus=0,
        domain=8,
        network_bandwidth=50 * GIGA,
        source="NVIDIA H100 SXM data sheet, halved where it counts sparsity; DGX H100, 400 Gbit/s",
    ),
    "h200": Chip(
        kinds=("NVIDIA H200",),
        bfloat16=989 * TERA,
        float32=494.5 * TERA,
        int8=1979 * TERA,
        float8=1979 * TERA,
        memory=141 * GIGA,
        memory_bandwidth=4800 * GIGA,
        links=18,
        link_bandwidth=25 * GIGA,
        torus=0,
        domain=8,
        network_bandwidth=50 * GIGA,
        source="NVIDIA H200 SXM data sheet, halved where it counts sparsity; DGX H200, 400 Gbit/s",
    ),
    "b200": Chip(
        kinds=("NVIDIA B200",),
        bfloat16=2250 * TERA,
        float32=1100 * TERA,
        int8=4500 * TERA,
        float8=4500 * TERA,
        memory=180 * GIGA,
        memory_bandwidth=8000 * GIGA,
        links=18,
        link_bandwidth=50 * GIGA,
        torus=0,
        domain=8,
        network_bandwidth=50 * GIGA,
        source="NVIDIA HGX B200 data sheet (1000 W), an eighth of 8 GPUs; DGX B200, 400 Gbit/s",
    ),
}


def chip(name: str) -> Chip:
    """The row of CHIPS with this name; ValueError names the nearest one."""
    found: Chip = names.lookup("hardware", name, CHIPS)
    return found


def detect(device: Any = None) -> Chip | None:
    """The chip of a JAX device, by default the first; None for a CPU or a kind not in the table."""
    kind = (jax.devices()[0] if device is None else device).device_kind
    rows = [(start, row) for row in CHIPS.values() for start in row.kinds if kind.startswith(start)]
    return max(rows, key=lambda pair: len(pair[0]))[1] if rows else None  # "TPU v5p", not "TPU v5"


def peak_flops(dtype: Any = jnp.bfloat16, device: Any = None) -> float | None:
    """FLOP/s that one JAX device can do in products of `dtype`; None where that is not known.

    On a CPU it is measured once, with a float32 product; simulated devices share it.
    """
    device = jax.local_devices()[0] if device is None else device
    if device.platform == "cpu":
        return measured_cpu() / jax.local_device_count("cpu")
    row = detect(device)
    return None if row is None else row.peak(dtype)


def memory_bandwidth(device: Any = None) -> float | None:
    """Bytes/s that one JAX device can read from its memory; None where that is not known."""
    row = detect(device)
    return None if row is None else row.memory_bandwidth / row.devices


def peak_note(dtype: Any = jnp.bfloat16, device: Any = None) -> str:
    """What an MFU was divided by, such as `989 TFLOP/s bfloat16 per NVIDIA H200`."""
    device = jax.local_devices()[0] if device is None else device
    peak = peak_flops(dtype, device)
    if peak is None:
        return f"no peak is known for {device.device_kind}"
    if device.platform == "cpu":
        total = peak * jax.local_device_count("cpu") / GIGA
        return f"{total:.0f} GFLOP/s float32, measured, of all cores"
    return f"{peak / TERA:.0f} TFLOP/s {np.dtype(dtype).name} per {device.device_kind}"


@functools.cache
def measured_cpu(size: int = 1024, repeats: int = 6) -> float:
    """FLOP/s of this machine in the best of a few float32 products; takes about 0.2 s."""
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        x = jnp.asarray(np.random.default_rng(0).standard_normal((size, size)), jnp.float32)
        product = jax.jit(jnp.matmul)
        product(x, x).block_until_ready()  # compiles
        best = float("inf")
        for _ in range(repeats):
            start = time.perf_counter()
            product(x, x).block_until_ready()
            best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best
