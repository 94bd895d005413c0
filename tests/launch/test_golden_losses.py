"""Short runs repeat the losses that are kept in git."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import golden_runs, update_golden
from tests.marks import but_slow

AGAIN = "if it should change: python -m tests.update_golden losses"


@pytest.mark.parametrize("name", but_slow(golden_runs.RUNS, "resnet"))
def test_losses_are_golden(name: str, tmp_path: Path) -> None:
    path = update_golden.GOLDEN / "losses" / f"{name}.json"
    golden = json.loads(path.read_text("utf-8"))
    got = golden_runs.losses(name, tmp_path / "run")
    assert got.keys() == golden.keys(), AGAIN
    for step, metrics in golden.items():
        for metric, value in metrics.items():
            # Versions of JAX differ in the order of their sums.
            assert got[step][metric] == pytest.approx(value, rel=1e-4, abs=1e-6), (step, AGAIN)
