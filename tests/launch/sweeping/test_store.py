"""What lies in the directory of a sweep, and who may write it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from launch.sweeping import claims
from launch.sweeping.cells import Cell, resolve_cells
from launch.sweeping.store import Store


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    return resolve_cells("digits_mlp", [], [{"seed": i} for i in range(4)])


def test_results_follow_the_cells_whatever_ends_first(tmp_path: Path, cells: list[Cell]) -> None:
    store = Store(tmp_path / "s")
    store.add(cells[2:])
    store.add(cells)  # what was planned first stays first
    order = [cells[2], cells[3], cells[0], cells[1]]
    assert [record["id"] for record in store.records()] == [cell.id for cell in order]
    for cell in (cells[1], cells[0], cells[2]):
        store.run(cell.id).mkdir(parents=True)
        store.write(store.read(cell) | {"status": "done", "final": True})
        before = (store.path / "results.jsonl").read_text().splitlines()
    store.run(cells[3].id).mkdir(parents=True)
    store.write(store.read(cells[3]) | {"status": "failed"})  # it will be tried again
    lines = (store.path / "results.jsonl").read_text().splitlines()
    assert lines == before
    wanted = [cells[2].id, cells[0].id, cells[1].id]
    assert [json.loads(line)["id"] for line in lines] == wanted
    assert {record["status"] for record in store.records()} == {"done", "failed"}


def test_a_trainer_that_outlives_its_queue_keeps_its_cell(
    tmp_path: Path, cells: list[Cell]
) -> None:
    store = Store(tmp_path / "s")
    store.add(cells)
    store.run(cells[0].id).mkdir(parents=True)
    trainer = claims.claim(store.run(cells[0].id) / "lock")
    assert trainer is not None
    assert store.claim(cells[0].id) is None and store.is_claimed(cells[0].id)
    trainer.release()
    claim = store.claim(cells[0].id)
    assert claim is not None and store.claim(cells[0].id) is None
    claim.release()


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path, cells: list[Cell]) -> None:
    (tmp_path / "config.json").touch()
    with pytest.raises(FileExistsError, match="is no directory of a sweep .it holds config.json"):
        Store(tmp_path).add(cells)
    with pytest.raises(NotADirectoryError, match="is a file"):
        Store(tmp_path / "config.json").add(cells)
    with pytest.raises(FileNotFoundError, match="no sweep there"):
        Store(tmp_path).records()
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "sweep.json").write_text('{"format": 2, "cells": []}')
    with pytest.raises(ValueError, match="format 2; this version reads 1"):
        Store(tmp_path / "later").records()


def test_cells_are_named_by_the_beginning_of_their_id(tmp_path: Path, cells: list[Cell]) -> None:
    store = Store(tmp_path / "s")
    store.add(cells)
    assert store.mark([cells[1].id[:7]], "skipped", "why") == [cells[1].id]
    assert store.read(cells[1])["reason"] == "why" and store.read(cells[1])["final"]
    with pytest.raises(ValueError, match="'' is the beginning of several"):
        store.mark([""], "skipped", "")
    claim = store.claim(cells[2].id)
    assert claim is not None
    with pytest.raises(ValueError, match="is being run"):
        store.mark([cells[2].id], "skipped", "")
    claim.release()
    assert os.listdir(store.run(cells[2].id)) == [".claim"]
