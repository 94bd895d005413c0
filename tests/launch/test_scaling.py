"""launch.scaling on tables from elsewhere, and what it refuses."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from launch import scaling
from launch.run import errors


def table(path: Path, ratios: tuple[float, ...], noise: float = 0.0, floor: float = 1.7) -> str:
    """Runs of a law with Chinchilla's exponents; ratios: of the tokens to the best ones."""
    rng = np.random.default_rng(0)
    rows = []
    for budget in (1e17, 3e17, 1e18, 3e18, 1e19):
        best = math.sqrt(budget / 6 / 20)
        for ratio in ratios:
            size = best * ratio
            tokens = budget / 6 / size
            loss = floor + 480 / size**0.35 + 2085 / tokens**0.37
            row = {"params": size, "tokens": tokens, "flops": budget, "eval": loss}
            rows.append(row | {"eval": loss * math.exp(noise * rng.normal()), "group": budget})
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


SLICE = tuple(np.geomspace(0.25, 4, 7))
COLUMNS = "--columns=N=params,D=tokens,C=flops,L=eval"


def test_any_table_is_fitted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = table(tmp_path / "runs.csv", SLICE)
    target = tmp_path / "fit.json"
    flags = [f"--csv={file}", COLUMNS, f"--json={target}", "--form=chinchilla"]
    assert scaling.main(["fit", *flags]) == errors.DONE
    assert "IsoFLOP parabolas: N* ~ C^0.5" in capsys.readouterr().out
    found = json.loads(target.read_text("utf-8"))
    expected = {"E": 1.7, "A": 480, "alpha": 0.35, "B": 2085, "beta": 0.37}
    assert found["parametric"]["parameters"] == pytest.approx(expected, rel=1e-4)
    assert scaling.main(["report", *flags[:2], f"--to={tmp_path / 'report'}"]) == errors.DONE
    assert (tmp_path / "report" / "report.md").is_file()


def test_rows_can_be_held_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = table(tmp_path / "runs.csv", SLICE, noise=1e-3)
    flags = [f"--csv={file}", COLUMNS, "--held-out=C > 5e18", "--budget=1e20"]
    assert scaling.main(["forecast", *flags]) == errors.DONE
    said = capsys.readouterr().out
    (line,) = (line for line in said.splitlines() if line.startswith("| 1e+19"))
    assert abs(float(line.split("|")[-2].strip().rstrip("%"))) < 1
    assert "| 1e+20" in said


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that the command says before it ends with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        scaling.main(list(words))
    assert end.value.code == errors.BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_designs_that_determine_nothing_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, "fit", f"--csv={table(tmp_path / 'a.csv', (1.0, 1.01))}", COLUMNS)
    assert "N and D do not vary apart" in line and "at least 5" in line
    file = table(tmp_path / "b.csv", tuple(np.geomspace(2, 9, 7)))
    flags = [f"--csv={file}", COLUMNS, "--form=power", "--budget=1e20"]
    assert scaling.main(["forecast", *flags]) == errors.DONE
    said = capsys.readouterr().out
    assert "| 1e+20 | nan | nan |" in said
    assert scaling.main(["fit", *flags[:3]]) == errors.DONE
    assert "the minimum was not seen; add smaller models" in capsys.readouterr().out


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = table(tmp_path / "runs.csv", SLICE)
    assert "nearest: 'forecast'" in refused(capsys, "forecasts")
    assert "one of --workdir and --csv" in refused(capsys, "fit")
    assert "no such file" in refused(capsys, "fit", f"--csv={tmp_path / 'none.csv'}")
    assert "no column L" in refused(capsys, "fit", f"--csv={file}", "--columns=N=params")
    line = refused(capsys, "fit", f"--csv={file}", "--columns=N=param")
    assert "nearest: 'params'" in line
    line = refused(capsys, "fit", f"--csv={file}", COLUMNS, "--form=chinchila")
    assert "nearest: 'chinchilla'" in line
    assert "no study there" in refused(capsys, "status", f"--workdir={tmp_path}")
    assert "--budget=FLOPS" in refused(capsys, "forecast", f"--csv={file}", COLUMNS)
    assert "--to=DIR" in refused(capsys, "report", f"--csv={file}", COLUMNS)
