"""Job arrays, with programs that stand in for Slurm's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import sweep
from launch.run import errors
from launch.sweeping import slots
from launch.sweeping.store import Store
from tests.launch import runs
from tests.launch.sweeping import fake_queue

pytest.importorskip("submitit", reason="the extra slurm is not installed")

PROGRAMS = {
    "srun": "#!/bin/sh\n",
    "sbatch": '#!/bin/sh\ncp "$1" "$SLURM_LOG/batch.sh" && echo "Submitted batch job 41"\n',
    "scontrol": '#!/bin/sh\necho "$@" >> "$SLURM_LOG/requeued"\n',
}
COMMAND = ["--config=experiments/digits_mlp.py", "--sweep.seed=0,1", "--executor=slurm"]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the programs write what they were told."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in PROGRAMS.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_LOG", str(folder))
    monkeypatch.setattr(slots, "WORKER", fake_queue.WORKER)
    return folder


def task(store: Store, number: int, environment: dict[str, str]) -> subprocess.Popen[str]:
    """Start a task of the array as its batch file does."""
    own = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "41", "SLURM_JOB_NODELIST": "here"}
    own |= {"SLURM_ARRAY_JOB_ID": "41", "SLURM_ARRAY_TASK_ID": str(number), "SLURM_PROCID": "0"}
    paths = {"PYTHONPATH": os.pathsep.join([str(runs.ROOT), *sys.path])}
    command = [sys.executable, "-m", "submitit.core._submit", str(store.path / ".slurm")]
    pipe = subprocess.PIPE
    environment = {**environment, **own, **paths}
    return subprocess.Popen(command, env=environment, text=True, stdout=pipe, stderr=pipe)


def test_tasks_of_an_array_run_the_cells_and_are_put_back_when_they_are_preempted(
    cluster: Path,
    tmp_path: Path,
    user_environment: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = Store(tmp_path / "s")
    flags = ["--slots=1", "--devices-per-run=2", "--slurm=partition=long", "--slurm=time=90"]
    assert sweep.main([*COMMAND, f"--workdir={store.path}", *flags]) == errors.DONE
    assert "2 tasks submitted: 41_0, 41_1" in capsys.readouterr().out
    lines = (cluster / "batch.sh").read_text().splitlines()
    for wanted in ("array=0-1%1", "partition=long", "time=90", "gpus-per-node=2"):
        assert f"#SBATCH --{wanted}" in lines
    assert f"#SBATCH --signal=USR2@{120}" in lines

    store = Store(tmp_path / "cpu")
    assert sweep.main([*COMMAND, f"--workdir={store.path}"]) == errors.DONE
    environment = {**user_environment, **{k: os.environ[k] for k in ("PATH", "SLURM_LOG")}}
    first = task(store, 0, environment)
    slow = task(store, 1, {**environment, "PAUSE": "1"})
    journal = store.path / ".journal"
    second_id = store.records()[1]["id"]
    end = time.monotonic() + 60
    while not (journal.exists() and f"start {second_id}" in journal.read_text()):
        assert time.monotonic() < end
        time.sleep(0.05)
    slow.send_signal(signal.SIGUSR2)
    for process in (first, slow):
        process.communicate(timeout=60)
    assert first.returncode == 0
    assert (cluster / "requeued").read_text() == "requeue 41_1\n"
    assert [record["status"] for record in store.records()] == ["done", "preempted"]
    again = task(store, 1, environment)
    again.communicate(timeout=60)
    assert again.returncode == 0
    assert [record["status"] for record in store.records()] == ["done", "done"]
    assert [record["interruptions"] for record in store.records()] == [0, 1]
    capsys.readouterr()
    assert sweep.main([*COMMAND, f"--workdir={store.path}"]) == errors.DONE
    assert "0 tasks submitted\n" in capsys.readouterr().out


def test_what_slurm_refuses_is_said(
    cluster: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (cluster / "sbatch").write_text("#!/bin/sh\necho no such partition >&2\nexit 1\n")
    for flag, words in (("partition=x", "no such partition"), ("partitio=x", "partitio")):
        with pytest.raises(SystemExit) as end:
            sweep.main([*COMMAND, f"--workdir={tmp_path / 's'}", f"--slurm={flag}"])
        assert end.value.code == errors.BAD_INPUT
        error = capsys.readouterr().err
        assert words in error.splitlines()[-1]
