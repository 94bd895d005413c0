"""The machine that every test sees: eight simulated CPU devices, strict and quiet.

JAX and XLA read these variables when they are first imported, hence before anything else here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

# What a user's shell has. The workers of pytest-xdist inherit what is set below, hence the copy.
_BEFORE: dict[str, str] = json.loads(
    os.environ.setdefault("TESSERA_TESTS_ENVIRONMENT", json.dumps(dict(os.environ)))
)

DEVICES = 8


def simulate(devices: int) -> None:
    """So many CPU devices, when JAX starts."""
    flags = [f for f in os.environ["XLA_FLAGS"].split() if "device_count" not in f]
    flags.append(f"--xla_force_host_platform_device_count={devices}")
    os.environ["XLA_FLAGS"] = " ".join(flags)
    # With as many threads as two cores have, a collective among eight devices can deadlock.
    os.environ["NPROC"] = str(2 * devices)


os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("XLA_FLAGS", "")
simulate(DEVICES)
# An array that silently gains dimensions to fit another is most often a bug.
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# Tests compile far more than they run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
os.environ["GRPC_VERBOSITY"] = "ERROR"
os.environ["MPLBACKEND"] = "Agg"

import pytest  # noqa: E402


@pytest.fixture
def optimised() -> Iterator[None]:
    """Programs are compiled as a user's are: for what a test says of memory or of compiled text."""
    import jax

    setting = "jax_disable_most_optimizations"
    before = jax.config.read(setting)
    jax.config.update(setting, False)
    yield
    jax.config.update(setting, before)


@pytest.fixture
def user_environment() -> dict[str, str]:
    """For a subprocess that does what a user does: none of the above, but the CPU only."""
    return {**_BEFORE, "JAX_PLATFORMS": "cpu"}
