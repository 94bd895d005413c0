"""The directory of a sweep.

    sweep.json       {"format", "cells": [{"id", "overrides"}, ...]}: every cell ever planned here
    results.jsonl    one line per finished run, in the order of the cells
    runs/<id>/       the work directory of a run, as launch.train makes it, and its
    runs/<id>/run.json   record: see launch/sweeping/record.py
    .cache/          what its runs have compiled, until all have ended

An id is made from the config, so a changed config is another run beside the old one, and nothing is
overwritten. A record is written only by the queue that holds the claim of its cell.

`results.jsonl` is written anew, at once, from the records whenever a run ends. Were lines appended
as runs end, their order would depend on how fast machines are; so it is a function of the records,
and a sweep that was killed and one that was not leave the same file but for the `TIMES`. Lines are
only ever added: that of a finished run does not change.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from launch.run.workdir import write_atomically
from launch.sweeping import claims
from launch.sweeping.cells import Cell

FORMAT = 1
STATES = ("planned", "running", "done", "diverged", "failed", "preempted", "skipped")
# Keys of a record that depend on the clock or on what befell the machine, not on the run.
TIMES = (
    *("started", "finished", "seconds", "compile_seconds", "interruptions"),
    *("examples_per_second", "tokens_per_second", "mfu"),
)
Record = dict[str, Any]


class Store:
    """Reads and writes the directory of a sweep."""

    def __init__(self, directory: str | Path) -> None:
        self.path = Path(directory).expanduser().absolute()

    @property
    def cache(self) -> Path:
        return self.path / ".cache"

    def run(self, cell: str) -> Path:
        """The work directory of a cell's run."""
        return self.path / "runs" / cell

    def check(self) -> None:
        """Raise FileExistsError, NotADirectoryError where something else than a sweep lies here."""
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise NotADirectoryError(f"--workdir={self.path} is a file; name a directory")
        names = (p.name for p in self.path.iterdir())
        # Another queue that starts at this moment is about to give sweep.json its name.
        others = sorted(x for x in names if not x.startswith(".") and x != "sweep.json.tmp")
        if others and not (self.path / "sweep.json").exists():
            raise FileExistsError(
                f"--workdir={self.path} is no directory of a sweep (it holds {others[0]}): "
                "name one, or one that is not there yet"
            )

    def add(self, cells: Iterable[Cell]) -> None:
        """Plan cells; those that are planned already keep their place."""
        self.check()
        self.path.mkdir(parents=True, exist_ok=True)
        with claims.locked(self.path / ".lock"):
            planned = {cell["id"]: cell for cell in self._planned()}
            for cell in cells:
                planned.setdefault(cell.id, {"id": cell.id, "overrides": dict(cell.overrides)})
            text = json.dumps({"format": FORMAT, "cells": [*planned.values()]}, indent=1)
            write_atomically(self.path / "sweep.json", text + "\n")

    def _planned(self) -> list[Record]:
        path = self.path / "sweep.json"
        if not path.exists():
            return []
        found = json.loads(path.read_text("utf-8"))
        if found["format"] != FORMAT:
            raise ValueError(f"{path} is of format {found['format']}; this version reads {FORMAT}")
        cells: list[Record] = found["cells"]
        return cells

    def records(self) -> list[Record]:
        """The record of every cell, in their order.

        Raises FileNotFoundError where there is no sweep.
        """
        if not (self.path / "sweep.json").is_file():
            raise FileNotFoundError(f"--workdir={self.path}: no sweep there (no sweep.json)")
        return [self._record(cell) for cell in self._planned()]

    def read(self, cell: Cell) -> Record:
        """The record of a cell; that of a planned one where nothing has happened yet."""
        return self._record({"id": cell.id, "overrides": dict(cell.overrides)})

    def _record(self, planned: Record) -> Record:
        path = self.run(planned["id"]) / "run.json"
        record: Record = {**planned, "status": "planned", "reason": "", "final": False}
        record |= {"attempts": 0, "interruptions": 0, "seconds": 0.0, "compile_seconds": 0.0}
        if path.exists():
            record |= json.loads(path.read_text("utf-8"))
        return record

    def write(self, record: Record) -> None:
        """Keep a record; `results.jsonl` follows where it is that of a finished run."""
        text = json.dumps(record, indent=1, allow_nan=False)
        write_atomically(self.run(record["id"]) / "run.json", text + "\n")
        if record["final"]:
            self.write_results()

    def write_results(self) -> None:
        with claims.locked(self.path / ".lock"):
            finished = [record for record in self.records() if record["final"]]
            text = "".join(json.dumps(record, allow_nan=False) + "\n" for record in finished)
            write_atomically(self.path / "results.jsonl", text)

    def claim(self, cell: str) -> claims.Claim | None:
        """The right to run a cell; None while a queue, or a trainer it left behind, has it."""
        directory = self.run(cell)
        directory.mkdir(parents=True, exist_ok=True)
        claim = claims.claim(directory / ".claim")
        if claim is not None and claims.is_held(directory / "lock"):
            claim.release()
            return None
        return claim

    def is_claimed(self, cell: str) -> bool:
        directory = self.run(cell)
        return claims.is_held(directory / ".claim") or claims.is_held(directory / "lock")

    def mark(self, cells: Sequence[str], status: str, reason: str) -> list[str]:
        """Set cells to "skipped" (never run) or back to "planned" (as if they had never failed).

        cells: ids or the beginnings of some. Returns the ids.
        Raises ValueError for an id that is not there, is not unique, or is being run.
        """
        known = {record["id"]: record for record in self.records()}
        chosen = []
        for start in cells:
            found = [cell for cell in known if cell.startswith(start)]
            if len(found) != 1:
                what = "is the beginning of several" if found else "is none"
                raise ValueError(f"--cells: {start!r} {what} of {', '.join(known)}")
            chosen += found
        for cell in chosen:
            claim = self.claim(cell)
            if claim is None:
                raise ValueError(f"--cells: {cell} is being run; stop its queue first")
            try:
                change = {"status": status, "reason": reason, "final": status == "skipped"}
                self.write(known[cell] | change | {"attempts": 0})
            finally:
                claim.release()
        self.write_results()
        return chosen
