"""Machines by name, and how fast their links are."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from launch.cluster import topology
from launch.cluster.hardware import CHIPS
from launch.cluster.topology import Topology

GOOD = {
    "v4:2x2x1": ("tpu", "v4", 4),
    "v5e:16x16": ("tpu", "v5e", 256),
    "v5p:16x16x16": ("tpu", "v5p", 4096),
    "V5P:4x4x4": ("tpu", "v5p", 64),
    "v6e:1x1": ("tpu", "v6e", 1),
    "7x:4x4x4": ("tpu", "v7x", 128),  # two devices to a chip
    "tpu7x:2x2x1": ("tpu", "v7x", 8),
    "h100:1x8": ("gpu", "h100", 8),
    "h200:8x8": ("gpu", "h200", 64),
}


@pytest.mark.parametrize("name", GOOD)
def test_names_that_exist(name: str) -> None:
    platform, row, size = GOOD[name]
    found = topology.parse(name)
    assert (found.platform, found.chip, found.size) == (platform, CHIPS[row], size)
    assert topology.parse(found.name) == found


def test_examples_exist_and_are_listed() -> None:
    for name in topology.EXAMPLES:
        assert topology.parse(name).name == name
    lines = topology.listing().splitlines()
    assert [line.split(":")[0] for line in lines] == [*topology.TPUS, *topology.GPUS, "cpu"]


BAD = {
    "v5x:4x4": "unknown kind of --topology 'v5x': choose from .*; nearest: 'v5",
    "v5p": "after v5p: come sizes with x between; nearest: v5p:4x4x4",
    "v5p:axb": "nearest: v5p:4x4x4",
    "v5p:3x3x3": "3 sides of 1, 2, 4, 8, 12 or another multiple of 4.*nearest: v5p:4x4x4",
    "v5p:8x8": "nearest: v5p:8x8x1",
    "v5p:8x8x8x2": "nearest: v5p:8x8x16",
    "v5p:1x4x4": "the first two of at least 2",
    "v6e:32x32": "at most 256 in all; nearest: v6e:16x16",
    "v5e:0x4": "nearest: v5e:2x4",
    "h200:8x9": "G from 1 to 8; nearest: h200:8x8",
    "h200:16": "nearest: h200:1x8",
    "cpu:0": "nearest: cpu:1",
}


@pytest.mark.parametrize("name", BAD)
def test_names_that_do_not(name: str) -> None:
    with pytest.raises(ValueError, match=BAD[name]):
        topology.parse(name)
    suggestion = BAD[name].rpartition("nearest: ")[2]
    if ":" in suggestion:
        topology.parse(suggestion)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("v5p:2x2x1", RuntimeError("JAX TPU support not installed"), "needs libtpu: pip install"),
        ("h200:1x8", NotImplementedError("topology not implemented for cuda"), r"tessera\[cuda13"),
        ("v5p:2x2x1", RuntimeError("INVALID_ARGUMENT: x"), "libtpu refuses: INVALID_ARGUMENT"),
    ],
)
def test_a_missing_compiler_is_one_line(
    name: str, error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(topology.topologies, "get_topology_desc", refuse)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    for variable in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        monkeypatch.setenv(variable, "1")
    with pytest.raises(ValueError, match=message):
        topology.devices(topology.parse(name))


def torus(shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(
        [SimpleNamespace(coords=(*place, 0, 0)[:3]) for place in np.ndindex(*shape)], object
    ).reshape(shape)


def test_links_of_a_torus() -> None:
    chip, link = CHIPS["v5p"], CHIPS["v5p"].link_bandwidth
    whole, grid = Topology("v5p", (4, 4, 8)), torus((4, 4, 8))

    def speed(group: np.ndarray) -> float:
        return topology.bandwidth(chip, whole, group) / link

    assert speed(grid[:, 0, 0]) == 2  # a ring
    assert speed(grid[0]) == 4  # two rings
    assert speed(grid) == 6
    assert speed(grid[0, 0, :4]) == 1  # half of a side is a line
    assert speed(grid[0, 0, ::2]) == 0.5  # which shares its links with those left out
    flat = torus((16, 8))
    pod = Topology("v6e", (16, 8))
    for group, links in ((flat[:, 0], 2), (flat[0], 1)):
        want = links * CHIPS["v6e"].link_bandwidth
        assert topology.bandwidth(CHIPS["v6e"], pod, group) == want
    both = Topology("7x", (4, 4, 4))
    assert topology.bandwidth(CHIPS["v7x"], both, torus((4, 4, 4))[:, 0, 0]) == 100e9
    one = topology.bandwidth(CHIPS["v7x"], both, torus((1, 1, 1)).repeat(2))
    assert one == 300e9  # the two devices of a chip


def test_links_of_gpus() -> None:
    chip, where = CHIPS["h200"], Topology("h200", (8, 8))
    devices = np.asarray([SimpleNamespace(process_index=k // 8) for k in range(64)], object)
    assert topology.bandwidth(chip, where, devices[:8]) == 450e9
    assert topology.bandwidth(chip, where, devices[::8]) == 50e9  # one card each
    assert topology.bandwidth(chip, where, devices) == 400e9  # eight cards of a host
