"""What a person sees, on a terminal and in a pipe."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest

from launch.sweeping import view
from launch.sweeping.cells import Cell, resolve_cells
from launch.sweeping.store import Store


class Terminal(io.StringIO):
    """A stream that says it is a terminal, and the screen that one would show."""

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        lines: list[str] = []
        for part in re.split(r"(\x1b\[\d+A\x1b\[J)", self.getvalue()):
            if up := re.match(r"\x1b\[(\d+)A", part):
                del lines[-int(up[1]) :]
            else:
                lines += part.splitlines()
        return lines


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "s")
    store.add(cells())
    for cell in cells():
        store.run(cell.id).mkdir(parents=True)
    store.write(store.read(cells()[0]) | {"status": "done", "final": True})
    return store


def cells() -> list[Cell]:
    return resolve_cells("digits_mlp", [], [{"seed": i, "model.norm": "layer"} for i in range(3)])


def test_a_terminal_shows_what_goes_on_below_what_has_ended(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "EVERY", 0.0)
    terminal, (_, second, third) = Terminal(), cells()
    live = view.Live(store, cells(), terminal)
    for cell in (second, third):
        live.report(store.read(cell) | {"status": "running"})
    line = {"step": 7, "time": 0.0, "split": "train", "loss": 1.25}
    (store.run(third.id) / "metrics.jsonl").write_text(json.dumps(line) + '\n{"step": 8, "los')
    for _ in range(3):
        live.tick([second.id, third.id])
    head, *rows = terminal.screen()
    assert head == "1 ended, 2 running  0:00"
    assert rows == [f"{second.id}  seed=1", f"{third.id}  seed=2  step 7  loss 1.25"]
    ended = {"status": "done", "final": True, "seconds": 61.0, "val": {"loss": 0.5}}
    live.report(store.read(second) | ended)
    live.tick([third.id])
    told, head, row = terminal.screen()
    assert told == f"[2/3]  done       {second.id}  seed=1  loss 0.5000  1:01"
    assert head.startswith("2 ended, 1 running  0:00  eta 0:00") and third.id in row


def test_a_pipe_gets_a_line_for_every_start_and_end(store: Store) -> None:
    pipe, (_, second, _) = io.StringIO(), cells()
    live = view.Live(store, cells(), pipe)
    live.report(store.read(second) | {"status": "running"})
    live.tick([second.id])
    live.report(store.read(second) | {"status": "failed", "reason": "exit code 1: no space"})
    assert pipe.getvalue().splitlines() == [
        f"[1/3]  running    {second.id}  seed=1",
        f"[1/3]  failed     {second.id}  seed=1  0:00  exit code 1: no space",
    ]


def test_a_run_whose_queue_is_gone_is_not_running(store: Store) -> None:
    second = cells()[1]
    store.write(store.read(second) | {"status": "running"})
    claim = store.claim(second.id)
    assert claim is not None
    assert [row["state"] for row in view.rows(store)] == ["done", "running", "planned"]
    claim.release()
    assert [row["state"] for row in view.rows(store)] == ["done", "preempted", "planned"]


def test_tables_align_numbers_right_and_leave_gaps_empty() -> None:
    rows = [{"name": "a", "x": 1.5}, {"name": "bb", "y": 123456}, {"name": "c", "x": None}]
    assert view.table(rows).splitlines() == [
        *("name    x       y", "a     1.5", "bb         123456", "c")
    ]
