"""The fits run where there is no accelerator, and no JAX to ask for one."""

from __future__ import annotations

import subprocess
import sys


def test_importing_the_fits_loads_neither_jax_nor_flax(user_environment: dict[str, str]) -> None:
    code = (
        "import sys, nn.analysis.scaling_laws as laws; laws.Table; from nn.analysis.scaling_laws "
        "import annealing, flops, noise_scale, rules; "
        "print(sorted({'jax', 'jaxlib', 'flax', 'optax', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**user_environment, "PYTHONPATH": "."},
    )
    assert done.stdout.strip() == "[]"
