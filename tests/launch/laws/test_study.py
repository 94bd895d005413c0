"""The keys of a study: from its file, from the command line, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.laws import study
from launch.laws.study import Study

MINIMAL = "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict()\n"


def written(folder: Path, body: str) -> str:
    path = folder / "made.py"
    path.write_text(MINIMAL + body)
    return str(path)


def test_keys_come_from_the_file_and_the_command_line(tmp_path: Path) -> None:
    spec = written(
        tmp_path,
        "def get_study():\n"
        "    return ConfigDict({'widths': (8, 16), 'budgets': [1e9], 'points': 5})",
    )
    found = study.load(spec, ["budgets=1e10,3e10", "span=2", "rule=mup"])
    assert found == Study(widths=(8, 16), budgets=(1e10, 3e10), points=5, span=2.0, rule="mup")
    assert study.split_arguments(["--study.span=2", "--config=a"]) == (["span=2"], ["--config=a"])


def test_what_is_no_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no function get_study\(\).*scaling_bytes"):
        study.load(written(tmp_path, ""))
    wrong = written(tmp_path, "def get_study():\n    return ConfigDict({'width': (8,)})")
    with pytest.raises(ValueError, match="unknown key of a study 'width'.*nearest: 'widths'"):
        study.load(wrong)
    wrong = written(tmp_path, "def get_study():\n    return ConfigDict({'widths': (8.5,)})")
    with pytest.raises(ValueError, match=r"study\.widths=8\.5 is of the wrong type"):
        study.load(wrong)
    with pytest.raises(ValueError, match=r"--study\.span needs a value"):
        study.split_arguments(["--study.span"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"widths": ()}, "one of widths and models"),
        ({"widths": (16, 8)}, "ascending order"),
        ({"budgets": ()}, "give budgets"),
        ({"held_out": (1e9,)}, "budgets of the fit too"),
        ({"rule": "mupp"}, "nearest: 'mup'"),
        ({"convention": "matmuls"}, "nearest: 'matmul'"),
        ({"points": 0}, "points=0: at least 1"),
        ({"span": 1.0}, "above 1"),
        ({"warmup_fraction": 0.2}, "0 to 0.1.*nearest: 0.1"),
    ],
)
def test_values_that_make_no_study(changes: dict[str, object], words: str) -> None:
    values: dict[str, object] = {"widths": (8, 16), "budgets": (1e9,)}
    with pytest.raises(ValueError, match=words):
        Study(**{**values, **changes})  # type: ignore[arg-type]
