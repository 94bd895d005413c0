"""The planner's memory against what compilers allocated, as the kept reports say."""

from __future__ import annotations

import json
import math
import re

import pytest

from launch.cluster import hardware
from launch.run import config as configs
from launch.run import planning
from nn import parallel
from nn.parallel.mesh import compiled_for
from tests import golden_compile

TOLERANCE = 0.15


@pytest.mark.parametrize("name", golden_compile.REPORTS)
def test_memory_is_what_the_compiler_needs(name: str) -> None:
    report = json.loads((golden_compile.GOLDEN / f"{name}.json").read_text("utf-8"))
    spec, overrides, (topology,) = configs.split_arguments(golden_compile.REPORTS[name])
    kind, _, shape = topology.partition("=")[2].partition(":")
    chip, chips = hardware.chip(kind), math.prod(map(int, re.findall(r"\d+", shape)))
    devices = chips * chip.devices
    with compiled_for(chip.platform):
        config = configs.load(spec, overrides)
        planner = planning.Planner(config, planning.machine(chip, devices), devices)
        sizes = parallel.mesh_shape({axis: config.mesh[axis] for axis in parallel.AXES}, devices)
        (estimate,) = planning.only(planner, sizes).fitting
    assert estimate.mesh == report["mesh"]
    ratio = estimate.bytes / report["memory"]["needed"]
    assert abs(ratio - 1) <= TOLERANCE, f"{ratio:.3f} of what was compiled"
