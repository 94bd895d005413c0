"""Prepared data: whole or not there, whatever happens to the process that prepares them."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from launch.data import prepare


def fill(directory: Path) -> None:
    (directory / "a").write_text("first")
    (directory / "b").write_text("second")


def calls(counted: list[Path]) -> Callable[[Path], None]:
    def counting(directory: Path) -> None:
        counted.append(directory)
        fill(directory)

    return counting


def test_a_whole_directory_is_not_made_again(tmp_path: Path) -> None:
    counted: list[Path] = []
    for _ in range(2):
        final = prepare.ensure(tmp_path / "x" / "1", calls(counted))
        assert (final / "a").read_text() == "first"
    assert len(counted) == 1
    assert sorted(file.name for file in final.parent.iterdir()) == [".1.lock", "1"]


def change(final: Path) -> None:
    (final / "a").write_text("firsT")


def truncate(final: Path) -> None:
    (final / "b").write_text("sec")


def remove(final: Path) -> None:
    (final / "b").unlink()


def unfinished(final: Path) -> None:
    (final / "manifest.json").unlink()


def torn(final: Path) -> None:
    (final / "manifest.json").write_text('{"a": [5,')


@pytest.mark.parametrize("damage", [change, truncate, remove, unfinished, torn])
def test_a_damaged_directory_is_made_anew(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    final = prepare.ensure(tmp_path / "1", fill)
    damage(final)
    assert not prepare.is_whole(final)
    prepare.ensure(final, fill)
    assert prepare.is_whole(final)
    assert (final / "a").read_text() == "first"
    assert sorted(file.name for file in tmp_path.iterdir()) == [".1.lock", "1"]


def test_a_failed_preparation_leaves_nothing(tmp_path: Path) -> None:
    def fails(directory: Path) -> None:
        fill(directory)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        prepare.ensure(tmp_path / "1", fails)
    assert [file.name for file in tmp_path.iterdir()] == [".1.lock"]


SLOW = """
import pathlib, sys, time
from launch.data import prepare
def fill(directory):
    with open(pathlib.Path(sys.argv[1]) / "log", "a") as log:
        log.write("x")
    (directory / "a").write_text("first")
    time.sleep(float(sys.argv[2]))
    (directory / "b").write_text("second")
final = prepare.ensure(pathlib.Path(sys.argv[1]) / "1", fill)
print((final / "b").read_text())
"""


def start(directory: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SLOW, str(directory), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_of_two_processes_one_prepares_and_both_get_the_data(tmp_path: Path) -> None:
    running = [start(tmp_path, 1) for _ in range(2)]
    assert [process.communicate(timeout=60)[0] for process in running] == ["second\n"] * 2
    assert (tmp_path / "log").read_text() == "x"


def test_a_process_killed_while_it_prepares_leaves_no_data(tmp_path: Path) -> None:
    process = start(tmp_path, 60)
    while not (tmp_path / "log").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert not prepare.is_whole(tmp_path / "1")
    assert len(list(tmp_path.glob(".1.new-*"))) == 1
    prepare.ensure(tmp_path / "1", fill)
    assert not list(tmp_path.glob(".1.new-*"))


def test_the_wait_for_another_process_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "_PATIENCE", 0.2)
    with prepare._lock(tmp_path / ".1.lock"), pytest.raises(TimeoutError, match=r"\.1\.lock"):
        prepare.ensure(tmp_path / "1", fill)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "1", Path("/proc/nothing/1")):
        with pytest.raises((PermissionError, FileNotFoundError)) as error:
            prepare.ensure(place, fill)
        assert str(place.parent) in str(error.value)
        assert "\n" not in str(error.value)


def _rows() -> list[dict[str, object]]:
    return [{"number": i, "values": np.full(3, i, np.float32)} for i in range(20)]


def _build(root: Path, config: str | None) -> Path:
    import tensorflow_datasets as tfds

    return prepare.build(
        root,
        "counting",
        "1.2.3",
        config=config,
        features=lambda: {
            "number": np.int64,
            "values": tfds.features.Tensor(shape=(3,), dtype=np.float32),
        },
        splits=lambda: {"train": _rows(), "test": _rows()[:3]},
        description="Numbers.",
        homepage="https://example.org",
        licence="CC0-1.0",
    )


@pytest.mark.parametrize("config", [None, "large"])
def test_a_builder_writes_what_tfds_reads(
    tmp_path: Path, config: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    path = _build(tmp_path, config)
    assert path == tmp_path / "counting" / (config or "") / "1.2.3"
    assert _build(tmp_path, config) == path
    for split, length in (("train", 20), ("test", 3), ("train[5:9]", 4)):
        records = prepare.open_records(path, split)
        assert len(records) == length
        first = 5 if "[" in split else 0
        for place, record in enumerate(records):
            assert record["number"] == place + first
            assert record["values"].tolist() == [place + first] * 3
    assert capfd.readouterr().out == ""
    moved = tmp_path / "elsewhere"
    shutil.move(path, moved)  # prepared data may be copied to another machine
    assert prepare.is_whole(moved)
    assert len(prepare.open_records(moved, "train")) == 20
