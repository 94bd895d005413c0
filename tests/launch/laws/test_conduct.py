"""A study from its first slice to its report, on runs that follow a known law."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import pytest

from launch import scaling
from launch.laws import conduct, source
from launch.laws.planner import Planner
from launch.run import errors
from launch.sweeping.store import Store
from tests.launch.laws.conftest import law, trained


@pytest.fixture
def finished(planner: Planner, spec: str, store: Store) -> Store:
    conducted(planner, spec, store)
    return store


def conducted(planner: Planner, spec: str, store: Store, stop: int = -1) -> int:
    """stop: calls after which the queue is interrupted."""
    calls = []

    def run(store: Store, cells: object) -> int:
        calls.append(cells)
        if len(calls) == stop:
            return errors.PREEMPTED
        return functools.partial(trained, planner=planner)(store, cells)  # type: ignore[arg-type]

    return conduct.Conduct(planner, spec, [], store, run, say=lambda line: None).all()


def test_slices_are_centred_on_what_the_ones_before_foretell(finished: Store) -> None:
    kept = conduct.read_study(finished.path)
    centers = {float(budget): center for budget, center in kept["centers"].items()}
    assert sorted(centers) == [1e9, 3e9, 1e10, 3e10, 3e11]
    # alpha = beta: N* = (A/B)^(1/2 alpha) (C/6)^(1/2), here 0.253 (C/6)^(1/2).
    for budget in (1e10, 3e10, 3e11):
        best = (40 / 120) ** (1 / 0.8) * (budget / 6) ** 0.5
        assert centers[budget] == pytest.approx(best, rel=0.15)


def test_a_study_that_was_stopped_goes_on_to_the_same(
    planner: Planner, spec: str, finished: Store, tmp_path: Path
) -> None:
    other = Store(tmp_path / "other")
    assert conducted(planner, spec, other, stop=3) == errors.PREEMPTED
    assert conducted(planner, spec, other) == errors.DONE
    for name in ("study.json", "results.jsonl"):
        assert (other.path / name).read_text() == (finished.path / name).read_text()


def test_the_report_of_a_study(finished: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert scaling.main(["report", f"--workdir={finished.path}"]) == errors.DONE
    said = capsys.readouterr().out
    folder = finished.path / "report"
    text = (folder / "report.md").read_text("utf-8")
    assert said.splitlines()[0] == re.search(r"\*\*(.*)\*\*", text)[1]  # type: ignore[index]
    pictures = set(re.findall(r"!\[.*?\]\((.*?)\)", text))
    assert pictures == {path.name for path in folder.glob("*.png")}
    assert {"isoflop.png", "laws.png", "contour.png", "residuals.png"} <= pictures
    found = json.loads((folder / "fit.json").read_text("utf-8"))
    (forecast,) = found["forecasts"]
    best = min(law(N, 3e11 / 6 / N) for N in range(10_000, 400_000, 100))
    assert forecast["L"] == pytest.approx(best, rel=2e-3)
    assert abs(forecast["error"]) < 5e-3
    assert forecast["low"] < best < forecast["high"]
    assert "held out: the forecast is compared with it" in text
    assert "noise of a seed" in text
    for heading in ("Forecasts", "Leave future out", "Approaches", "Runs left out", "Checklist"):
        assert f"## {heading}" in text


def test_fewer_budgets_can_be_fitted(finished: Store, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--workdir={finished.path}", "--max-budget=1e10", "--budget=3e10"]
    assert scaling.main(["forecast", *flags]) == errors.DONE
    assert "at 3e+10 FLOPs" in capsys.readouterr().out
    assert scaling.main(["status", f"--workdir={finished.path}"]) == errors.DONE
    assert " done" in capsys.readouterr().out.splitlines()[-1]


def test_unfinished_runs_are_listed_with_their_reason(finished: Store) -> None:
    records = finished.records()
    records[0] |= {"status": "diverged", "reason": "the loss is not finite"}
    rows = source.rows_of(finished.path, records, "loss")
    fitted, everything, held = source.tables(rows)
    assert (records[0]["id"], "diverged: the loss is not finite") in [
        (x.run, x.reason) for x in fitted.excluded
    ]
    out = sum(row["role"] == "held out" for row in rows)
    assert len(held) == out >= 3
    assert len(fitted) == len(everything) == len(rows) - out - 1
