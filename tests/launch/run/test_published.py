"""What config.json decides: format, family, fields, and what may not contradict it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import pytest

from launch.run import config as configs
from launch.run import published as reading
from launch.run import resolve
from nn.parallel import unbox
from nn.pretrained.table import flatten
from tests.launch import published


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    published.write(tmp_path / "llama")
    return tmp_path / "llama"


def load(directory: Path, *overrides: str, spec: str | None = None) -> Any:
    own = [f"model.pretrained={directory}", "data.sequence_length=16"]
    return configs.load(spec, [*own, *overrides])


def test_the_directory_gives_the_fields(llama: Path) -> None:
    config = load(llama)
    model = reading.read(llama).config
    assert configs.section(config, "model") == model
    assert (model.dim, model.num_kv_heads, model.position) == (20, 2, "rotary")
    assert config.model.pretrained == str(llama)


def test_what_an_experiment_set_for_its_own_model_is_dropped(llama: Path) -> None:
    for spec in ("experiments/bytes_gpt.py", "experiments/gpt2.py"):
        config = load(llama, spec=spec)
        assert configs.section(config, "model") == reading.read(llama).config
        assert config.model.preset is None


def test_what_config_json_does_not_speak_of_is_free(llama: Path) -> None:
    config = load(llama, "model.remat=block", "model.dropout=0.1", "model.dim=20")
    assert (config.model.remat, config.model.dropout) == ("block", 0.1)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.dim=24", "model.dim=24 contradicts .*config.json; nearest: 20"),
        ("model.position=learned", "model.position='learned' contradicts .* nearest: 'rotary'"),
        ("model.context_length=64", "model.context_length=64 contradicts .*; nearest: 72"),
        ("model.tie_embeddings=true", "model.tie_embeddings=True contradicts .*; nearest: False"),
        ("model.preset=gpt2", "model.preset='gpt2' and model.pretrained=.* both give the model"),
        ("model.family=resnet", "model.family='resnet' does not fit .*; nearest: 'transformer'"),
    ],
)
def test_what_contradicts_it_is_refused(llama: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(llama, override)


def test_a_resolved_config_needs_the_directory_no_more(llama: Path) -> None:
    config = load(llama)
    (llama / "config.json").unlink()
    again = configs.from_json(configs.to_json(config))
    assert again == config
    assert configs.override(config, ["train.steps=7"]).model.dim == 20


def changed(directory: Path, **changes: Any) -> None:
    raw = json.loads((directory / "config.json").read_text())
    new = {key: x for key, x in (raw | changes).items() if x != "absent"}
    (directory / "config.json").write_text(json.dumps(new))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "lama"}, "config.json: unknown model_type 'lama': .*; nearest: 'llama'"),
        ({"model_type": "absent"}, "config.json: no model_type: choose from .*gpt2, .*llama, "),
        (
            {"rope_parameters": {"partial_rotary_factor": 0.5}},
            "config.json: partial_rotary_factor=0.5: our transformer does not have that",
        ),
        ({"quantization_config": {"bits": 4}}, "config.json: quantization_config: quantised"),
        ({"rope_parameters": 3, "rope_scaling": 3}, "config.json: TypeError"),
    ],
)
def test_wrong_configs(llama: Path, changes: dict[str, Any], message: str) -> None:
    changed(llama, **changes)
    with pytest.raises(ValueError, match=message):
        reading.read(llama)


def test_no_config(llama: Path) -> None:
    (llama / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="config.json: holds a list, not an object"):
        reading.read(llama)
    (llama / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="config.json is missing, which says what model"):
        reading.read(llama)
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such directory"):
        load(llama.parent / "nowhere")


def shapes(family: str, config: Any) -> dict[str, Any]:
    module = resolve.module("model", family)
    made = jax.eval_shape(
        lambda: module.Model(config).init(jax.random.key(0), *module.example(config, 1))
    )
    return flatten({name: unbox(x) for name, x in made.items() if name != "intermediates"})


@pytest.mark.parametrize("preset", ["gpt2", "llama3-8b", "mixtral-8x7b"])
def test_the_format_of_a_model_is_found(preset: str) -> None:
    config = resolve.module("model", "transformer").PRESETS[preset]
    leaves = shapes("transformer", config)
    found, able = reading.format_for("transformer", config, leaves)
    kind = preset.partition("-")[0].rstrip("3")
    assert kind in able
    assert found.table(config).check(reading.leaves_of(found.table(config), leaves)) is None
    assert reading.format_for("transformer", config, leaves, kind)[0].MODEL_TYPES[0] == kind
    other = "gpt2" if kind != "gpt2" else "llama"
    with pytest.raises(ValueError, match=f"no published format can hold this model. {other}: "):
        reading.format_for("transformer", config, leaves, other)
    with pytest.raises(ValueError, match="unknown model_type of this family 'resnet': choose from"):
        reading.format_for("transformer", config, leaves, "resnet")


def test_a_family_without_a_format() -> None:
    config = resolve.module("model", "mlp").Config()
    with pytest.raises(ValueError, match="unknown family with a published format 'mlp': choose"):
        reading.format_for("mlp", config, {})
