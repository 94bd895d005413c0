"""`launch.convert` beside transformers: the same outputs, and what it writes is what they load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from launch import convert
from tests.peers import decoders, resnets


def save(variant: str, seed: int, directory: Path) -> None:
    maker = resnets if variant in resnets.VARIANTS else decoders
    maker.model(variant, seed).float().save_pretrained(directory)


@pytest.mark.parametrize("variant", ["gpt2", "llama_tied_llama3", "mixtral", "bottleneck"])
def test_check_finds_the_same_outputs(
    variant: str, seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(variant, seed, tmp_path / "x")
    assert convert.main(["check", f"--from={tmp_path / 'x'}"]) == 0
    assert "max abs difference from transformers" in capsys.readouterr().out


@pytest.mark.parametrize("variant", ["gpt2_relu_untied", "mixtral_balance_window"])
def test_transformers_loads_what_came_in_and_went_out(
    variant: str, seed: int, tmp_path: Path
) -> None:
    save(variant, seed, tmp_path / "x")
    run, out = tmp_path / "run", tmp_path / "out"
    assert convert.main(["import", f"--from={tmp_path / 'x'}", f"--to={run}"]) == 0
    assert convert.main(["export", f"--from={run}", f"--to={out}", "--shard-size=8KB"]) == 0
    read = transformers.AutoModelForCausalLM.from_pretrained
    before = read(tmp_path / "x", dtype=torch.float32)
    after, report = read(out, dtype=torch.float32, output_loading_info=True)
    assert not any(report[kind] for kind in report), report
    new = after.state_dict()
    assert all(torch.equal(x, new[name]) for name, x in before.state_dict().items())
