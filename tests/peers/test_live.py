"""Every topic with a fresh random seed, the reference running beside our code."""

from __future__ import annotations

import pytest
import timm

from tests import golden_store
from tests.peers import record

SLACK = 4.0  # for a draw that happens to be badly conditioned; a mistake is off by far more


@pytest.mark.parametrize("name", record.names())
def test_live(name: str, seed: int) -> None:
    golden_store.check(name, record.make(name, seed), SLACK)


def test_what_is_committed_is_what_would_be_recorded() -> None:
    assert sorted(record.names()) == golden_store.names()


def test_timm_builds_a_model() -> None:
    """torchvision's operators may be missing (see `packages`); its models and timm's are not."""
    model = timm.create_model("resnet18")
    assert sum(p.numel() for p in model.parameters()) == 11_689_512


def test_record_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert record.main(["activation"]) == 2
    assert "unknown record 'activation': choose from activations," in capsys.readouterr().err
    assert record.main([]) == 2
