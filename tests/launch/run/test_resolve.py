"""Names to files: families, data sets, experiments."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.run import resolve

Write = Callable[..., str]


def test_available_lists_files_with_a_config_and_imports_none(toys: None) -> None:
    names = resolve.available("model")
    assert {"toy_net", "toy_other"} <= set(names)
    assert "toy_helper" not in names
    assert "nn.families.toy_net" not in sys.modules
    assert "toy_set" in resolve.available("data")
    assert not {"source", "loader"} & set(resolve.available("data"))


def test_module_is_imported_on_demand(toys: None) -> None:
    module = resolve.module("model", "toy_net")
    assert module is sys.modules["nn.families.toy_net"]
    assert resolve.summary(module) == "A toy network. It is never built."
    assert resolve.config_class("model", "toy_net") is module.Config


@pytest.mark.parametrize("name", ["toy_nett", "toy_helper", "__init__", "", "a.b", "../x", "a b"])
def test_other_names_are_refused(toys: None, name: str) -> None:
    with pytest.raises(ValueError, match="unknown model.family .*: choose from .*toy_net") as error:
        resolve.module("model", name)
    assert repr(name) in str(error.value)


def test_a_config_may_be_imported_from_elsewhere(toys: None, tmp_path: Path) -> None:
    folder = tmp_path / "nn.families" / "toy_folder"
    folder.mkdir()
    (folder / "__init__.py").write_text('"""A folder."""\nfrom nn.families.toy_net import Config\n')
    assert "toy_folder" in resolve.available("model")


@pytest.mark.parametrize(
    "spec", ["experiments/base.py", "base.py", "base", str(Path("experiments/base.py").absolute())]
)
def test_experiments_are_found_by_path_and_by_name(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve.find_experiment(spec) == (resolve.experiments_directory() / "base.py", None)
    assert resolve.find_experiment(f"{spec}:12:b"[:-2])[1] == "12"


def test_a_file_here_comes_before_one_of_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "experiments" / "base.py"
    own.parent.mkdir()
    own.touch()
    assert resolve.find_experiment("experiments/base.py:x") == (own.resolve(), "x")


def test_a_colon_in_a_path(tmp_path: Path) -> None:
    path = tmp_path / "a:b.py"
    path.touch()
    assert resolve.find_experiment(str(path)) == (path, None)
    assert resolve.find_experiment(f"{path}:c") == (path, "c")


@pytest.mark.parametrize(
    ("spec", "nearest"),
    [
        ("experiments/digit_mlp.py", "experiments/digits_mlp.py"),
        ("digits_mlps", "experiments/digits_mlp.py"),
        ("experiments/gpt.py:124m", "experiments/gpt2.py"),
    ],
)
def test_missing_experiments_name_the_nearest(spec: str, nearest: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"choose from .*; nearest: '{nearest}'") as error:
        resolve.find_experiment(spec)
    assert f"--config={spec}" in str(error.value)
    assert "base.py" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("def get_config(:\n", r"toy.py, line 1: "),
        ("import no_such_module\n", "cannot be imported: ModuleNotFoundError"),
        ("raise OSError('no')\n", "cannot be imported: OSError: no"),
        ("x = 1\n", r"has no function get_config\(\)"),
    ],
)
def test_broken_experiments(write_experiment: Write, source: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        resolve.load_experiment(Path(write_experiment(source=source)))


def test_a_file_that_is_not_python(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.touch()
    with pytest.raises(ValueError, match="not a Python file"):
        resolve.load_experiment(path)
