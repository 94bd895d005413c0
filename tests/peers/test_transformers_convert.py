"""`launch.convert` beside transformers: the same outputs, and what it writes is what they load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from launch import convert
from nn.pretrained import formats
from tests.peers import clips, decoders, encoder_decoders, encoders, resnets, vits, whispers

MAKERS = (decoders, encoders, encoder_decoders, vits, clips, whispers, resnets)
# Every model type, and every end that a model of it has.
CHECKED = (
    *("gpt2", "llama_tied_llama3", "mixtral", "mistral", "qwen2", "qwen3", "olmo2", "gemma2"),
    *("gemma3_text", "openai-gpt", "gpt_neo", "gptj", "gpt_neox", "opt_350m"),
    *("bert", "bert_base", "bert_class", "roberta", "distilbert", "electra", "electra_generator"),
    *("modernbert", "bart", "marian", "t5", "whisper", "clip", "siglip", "bottleneck"),
    *("vit", "vit_pooler", "vit_mae", "dinov2", "dinov2_registers", "dinov3"),
)


def save(variant: str, seed: int, directory: Path) -> None:
    maker = next(module for module in MAKERS if variant in module.VARIANTS)
    maker.model(variant, seed).float().save_pretrained(directory)


def test_every_model_type_is_checked() -> None:
    for kind in formats():
        name = {"resnet": "bottleneck", "dinov2_with_registers": "dinov2_registers"}
        short = name[kind] if kind in name else kind.removesuffix("_vit")
        assert any(variant.startswith(short) for variant in CHECKED), kind


@pytest.mark.parametrize("variant", CHECKED)
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
