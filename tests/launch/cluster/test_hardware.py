"""The table of chips: who is found in it, and what is said of those who are not."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from launch.cluster import hardware
from launch.cluster.hardware import CHIPS

KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU7x": "v7x",
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA B200": "b200",
}


def device(kind: str, platform: str = "tpu") -> SimpleNamespace:
    return SimpleNamespace(device_kind=kind, platform=platform)


@pytest.mark.parametrize("kind", KINDS)
def test_a_device_is_found_by_its_kind(kind: str) -> None:
    assert hardware.detect(device(kind)) is CHIPS[KINDS[kind]]


def test_unknown_devices_have_no_peak() -> None:
    for kind in ("TPU v99", "NVIDIA GeForce RTX 3090", "NVIDIA A100-PCIE-40GB"):
        assert hardware.detect(device(kind)) is None
        assert hardware.peak_flops(jnp.bfloat16, device(kind, "gpu")) is None
        assert "no peak is known for" in hardware.peak_note(jnp.bfloat16, device(kind, "gpu"))


def test_peaks_are_per_device_and_dtype() -> None:
    h200, v7x = device("NVIDIA H200", "gpu"), device("TPU7x")
    assert hardware.peak_flops(jnp.bfloat16, h200) == 989e12
    assert hardware.peak_flops("float16", h200) == 989e12
    assert hardware.peak_flops(np.float32, h200) == 494.5e12
    assert hardware.peak_flops(jnp.float8_e4m3fn, h200) == 1979e12
    assert hardware.peak_flops(jnp.int8, h200) == 1979e12
    assert hardware.peak_flops(jnp.bfloat16, v7x) == 2307e12 / 2  # two devices are one chip
    assert hardware.peak_flops(jnp.float8_e5m2, device("TPU v4")) is None
    assert hardware.peak_flops(np.float64, h200) is None
    assert hardware.peak_note(jnp.bfloat16, h200) == "989 TFLOP/s bfloat16 per NVIDIA H200"


def test_the_cpu_is_measured_and_shared_by_simulated_devices() -> None:
    whole = hardware.measured_cpu()
    assert 1e9 < whole < 1e14
    assert hardware.measured_cpu() == whole
    assert hardware.peak_flops(jnp.float32) == whole / 8
    assert hardware.peak_note(jnp.float32).endswith("GFLOP/s float32, measured, of all cores")
    assert hardware.detect() is None


@pytest.mark.parametrize("name", CHIPS)
def test_rows_are_plausible_and_cite_a_source(name: str) -> None:
    row = CHIPS[name]
    assert hardware.chip(name) is row
    assert row.source
    intensity = row.bfloat16 / row.memory_bandwidth  # FLOP per byte
    assert 100 < intensity < 600
    assert row.torus in (0, 2, 3) and row.links == (2 * row.torus or row.links)
    assert 1e11 < row.links * row.link_bandwidth < row.memory_bandwidth
    assert all(value is None or value for value in dataclasses.asdict(row).values() if value != 0)


def test_unknown_names_give_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown hardware 'v5x': .*nearest: 'v"):
        hardware.chip("v5x")
