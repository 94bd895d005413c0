"""The work directory: refused or made whole, held by one trainer, of one config."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch.run import environment, workdir
from launch.run.workdir import WorkDir, check_name

ROOT = Path(__file__).resolve().parents[3]


def config(**changes: Any) -> str:
    values = {"seed": 0, "train.steps": 10, "mesh.fsdp": 1, "model.width": 8, "data.dir": None}
    nested: dict[str, Any] = {}
    for key, value in {**values, **changes}.items():
        section, dot, name = key.rpartition(".")
        (nested.setdefault(section, {}) if dot else nested)[name] = value
    return json.dumps(nested)


def opened(path: Path, **changes: Any) -> WorkDir:
    work = WorkDir(path)
    work.open(config(**changes), env={"command": ["train"]})
    return work


def contents(path: Path, name: str) -> dict[str, Any]:
    return json.loads((path / name).read_text())


def test_layout(tmp_path: Path) -> None:
    path = tmp_path / "a dir" / "run-1.2_x"
    work = opened(path)
    assert {p.name for p in path.iterdir()} == {"config.json", "env.json", "status.json", "lock"}
    assert (path / "config.json").read_text() == config()
    assert contents(path, "env.json") == {"command": ["train"]}
    assert contents(path, "status.json")["state"] == "running"
    assert (work.checkpoints, work.profile) == (path / "checkpoints", path / "profile")
    assert work.log(3) == path / "log.3.txt"
    work.close()


def test_status_follows_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = opened(tmp_path / "run")
    work.beat(1)
    assert contents(work.path, "status.json")["step"] == 0  # not every step goes to the disk
    monkeypatch.setattr(workdir, "_HEARTBEAT", 0.0)
    work.beat(2)
    first = contents(work.path, "status.json")
    assert (first["step"], first["attempts"], first["pid"]) == (2, 1, os.getpid())
    work.close("preempted", "SIGTERM")
    work.close("done")
    last = contents(work.path, "status.json")
    assert (last["state"], last["reason"], last["step"]) == ("preempted", "SIGTERM", 2)
    assert last["heartbeat"] >= first["heartbeat"]
    again = opened(tmp_path / "run")
    assert contents(work.path, "status.json")["attempts"] == 2
    with pytest.raises(ValueError, match="state 'finished': choose from running, done"):
        again.status(state="finished")
    again.close()


def test_check_writes_nothing(tmp_path: Path) -> None:
    WorkDir(tmp_path / "new" / "run").check(config())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["..", "a b", "x" * 65, "run;rm", "ü", "a\n"])
def test_names_that_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="run name .*nearest: '[A-Za-z0-9._-]{1,64}'"):
        check_name(name)
    with pytest.raises(ValueError, match="run name"):
        WorkDir(tmp_path / name)
    with pytest.raises(ValueError, match="nearest: 'x'"):
        check_name("../x")


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(NotADirectoryError, match=f"{tmp_path}/file is a file"):
            WorkDir(path).check(config())
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match="link is a file"):
        WorkDir(tmp_path / "link").check(config())


def test_a_place_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda place, mode: False)  # root may write anywhere
    with pytest.raises(PermissionError, match=f"{tmp_path} cannot be written to"):
        WorkDir(tmp_path / "run").check(config())


def test_a_directory_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    WorkDir(tmp_path / "run").check(config())  # empty
    (tmp_path / "run" / "out.txt").write_text("what a scheduler wrote")
    WorkDir(tmp_path / "run").check(config())
    (tmp_path / "run" / "thesis.tex").write_text("")
    with pytest.raises(FileExistsError, match=r"no work directory \(it holds thesis\.tex\)"):
        WorkDir(tmp_path / "run").check(config())


def test_another_config_is_refused_once_something_was_saved(tmp_path: Path) -> None:
    opened(tmp_path / "run").close()
    other = config(**{"model.width": 16, "seed": 1})
    WorkDir(tmp_path / "run").check(other)  # nothing was saved: nothing to go on from
    (tmp_path / "run" / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"model\.width was 8, is 16; seed was 0, is 1: give"):
        WorkDir(tmp_path / "run").check(other)
    with pytest.raises(ValueError, match=r"model\.depth was absent, is 3"):
        WorkDir(tmp_path / "run").check(config(**{"model.depth": 3}))
    may = {"train.steps": 20, "mesh.fsdp": 4, "data.dir": "/data"}
    opened(tmp_path / "run", **may).close()
    assert (tmp_path / "run" / "config.json").read_text() == config(**may)


def test_two_trainers_do_not_share(tmp_path: Path) -> None:
    work = opened(tmp_path / "run")
    text = f"in use by process {os.getpid()} on .*: wait for it"
    with pytest.raises(ValueError, match=text):
        WorkDir(tmp_path / "run").check(config())
    with pytest.raises(ValueError, match=text):
        opened(tmp_path / "run")
    WorkDir(tmp_path / "run", process_index=1).check(config())  # a process of the same run
    work.close()
    opened(tmp_path / "run").close()


def test_the_lock_of_a_killed_trainer_is_free(tmp_path: Path) -> None:
    code = (
        f"import os, signal, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from launch.run.workdir import WorkDir\n"
        f"WorkDir({str(tmp_path / 'run')!r}).open('{{}}', {{}})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert contents(tmp_path / "run", "status.json")["state"] == "running"
    opened(tmp_path / "run").close()


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    work = WorkDir(tmp_path / "run", process_index=1)
    work.open(config(), {})
    work.beat(3)
    work.status(state="running")
    work.close()
    assert not list(tmp_path.iterdir())


def test_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MY_TOKEN", "secret")
    found = environment.describe(["train", "--config=x"])
    text = json.dumps(found)
    assert "secret" not in text
    assert found["devices"] == {
        **dict(backend="cpu", kind="cpu", count=8, processes=1),
        "host_cores": os.cpu_count(),
    }
    assert found["flags"]["NPROC"] == "16"
    assert {"jax", "flax", "orbax-checkpoint"} <= found["versions"].keys()
    assert environment.revision(tmp_path) == {}


def test_revision_says_whether_files_differ(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True)

    git("init", "--quiet")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "--quiet", "--message=one")
    clean = environment.revision(tmp_path)
    assert len(clean["commit"]) == 40 and clean["dirty"] is False
    (tmp_path / "file").write_text("2")
    assert environment.revision(tmp_path) == {**clean, "dirty": True}
