"""The machine that every test sees: eight simulated CPU devices, strict and quiet.

JAX and XLA read these variables when they are first imported, hence before anything else here.
"""

from __future__ import annotations

import json
import os

# What a user's shell has. The workers of pytest-xdist inherit what is set below, hence the copy.
_BEFORE: dict[str, str] = json.loads(
    os.environ.setdefault("TESSERA_TESTS_ENVIRONMENT", json.dumps(dict(os.environ)))
)

DEVICES = 8

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [
        *(f for f in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in f),
        f"--xla_force_host_platform_device_count={DEVICES}",
    ]
)
# Threads for the devices: with as many as two cores have, a collective among eight can deadlock.
os.environ["NPROC"] = "16"
# An array that silently gains dimensions to fit another is most often a bug.
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# Tests compile far more than they run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
os.environ["GRPC_VERBOSITY"] = "ERROR"
os.environ["MPLBACKEND"] = "Agg"

import pytest  # noqa: E402


@pytest.fixture
def user_environment() -> dict[str, str]:
    """For a subprocess that does what a user does: none of the above, but the CPU only."""
    return {**_BEFORE, "JAX_PLATFORMS": "cpu"}
