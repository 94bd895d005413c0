"""Every experiment: its resolved config is the golden one, and it says how to run it."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest

from launch.laws import planner, study
from launch.run import config, resolve
from tests import update_golden

GOLDEN = sorted((update_golden.GOLDEN / "configs").iterdir())
AGAIN = "if it should change: python -m tests.update_golden configs"
NAMES = {"bytes_gpt", "digits_mlp", "digits_resnet", "tabular_mlp", "gpt2", "llama3"}
NAMES |= {"bert_bytes", "long_context", "mixtral", "resnet50_imagenet"}


@pytest.fixture(scope="module")
def resolved() -> dict[str, str]:
    return update_golden.configs()


def test_every_config_has_a_golden_file_and_none_is_left_over(resolved: dict[str, str]) -> None:
    assert {path.name for path in GOLDEN} == {Path(name).name for name in resolved}, AGAIN
    assert {Path(name).stem for name in resolve.experiments()} >= NAMES


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_resolved_config_is_golden(path: Path, resolved: dict[str, str]) -> None:
    text = resolved[f"configs/{path.name}"]
    new, old = json.loads(text), json.loads(path.read_text("utf-8"))
    assert new == old, AGAIN
    assert text == path.read_text("utf-8"), AGAIN
    assert config.to_json(config.from_json(text)) == text


@pytest.mark.parametrize("experiment", resolve.experiments())
def test_docstring_says_how_to_run_it(experiment: str) -> None:
    module = resolve.load_experiment(resolve.find_experiment(experiment)[0])
    text = inspect.getdoc(module) or ""
    assert f"python -m launch.train --config={experiment}" in text
    assert "Hardware: " in text
    if hasattr(module, "ARGUMENTS"):
        assert all(argument in text for argument in module.ARGUMENTS)
    assert len(inspect.getsource(module).splitlines()) <= 70
    assert "base.get_config()" in inspect.getsource(module)


@pytest.mark.parametrize("experiment", resolve.experiments())
def test_every_run_of_a_sweep_loads_and_differs(experiment: str) -> None:
    module = resolve.load_experiment(resolve.find_experiment(experiment)[0])
    if hasattr(module, "sweep"):
        runs = [config.load(experiment, config.overrides_of(values)) for values in module.sweep()]
        assert len({config.digest(run) for run in runs}) == len(runs) > 1
    else:
        assert "launch.sweep" not in (inspect.getdoc(module) or "")


def test_the_default_argument_is_one_of_the_arguments() -> None:
    for experiment in resolve.experiments():
        module = resolve.load_experiment(resolve.find_experiment(experiment)[0])
        default = [p.default for p in inspect.signature(module.get_config).parameters.values()]
        assert default == [] or default[0] in module.ARGUMENTS


def test_golden_files_are_written_and_stale_ones_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(update_golden.KINDS, "configs", lambda: {"configs/a.json": "{}\n"})
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "old.json").touch()
    assert update_golden.update("configs", tmp_path) == [tmp_path / "configs" / "a.json"]
    assert [path.name for path in (tmp_path / "configs").iterdir()] == ["a.json"]


def test_every_study_loads_and_its_models_can_be_made() -> None:
    found = []
    for experiment in resolve.experiments():
        if not hasattr(
            resolve.load_experiment(resolve.find_experiment(experiment)[0]), "get_study"
        ):
            continue
        made = study.load(experiment)
        for width in made.widths:
            config.load(experiment, config.overrides_of(planner.of_width(made, width)))
        found.append(Path(experiment).stem)
    assert {"scaling_bytes", "scaling_transformer"} <= set(found)
