"""Live comparison with the references. Nothing is skipped: `make test-peers` installs them all."""

from __future__ import annotations

import os
import secrets

import pytest

try:
    from tests.peers import packages  # noqa: F401
except ImportError as error:
    raise pytest.UsageError(
        f"tests/peers needs the `peers` extra ({error}): run `make test-peers`"
    ) from None


@pytest.fixture
def seed() -> int:
    """Another one each time; a failure prints it. PEERS_SEED=number repeats a run."""
    given = os.environ.get("PEERS_SEED")
    number = secrets.randbelow(2**31) if given is None else int(given)
    print(f"PEERS_SEED={number}")
    return number
