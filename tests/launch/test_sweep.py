"""`launch.sweep` as a user runs it: real runs, their records, and the commands that read them."""

from __future__ import annotations

import csv
import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from launch import sweep
from launch.run import config as configs
from launch.run import environment, errors
from launch.sweeping.store import TIMES, Store
from tests.launch import runs

RATES = "--sweep.optimizer.learning_rate=1e-2,1e30,3e-2"
SETTINGS = {**runs.SHORT, "rule.max_skipped": 2, "model.features": "8,8"}
FLAGS = [f"--config.{name}={value}" for name, value in SETTINGS.items()]
CONFIG = "--config=experiments/digits_mlp.py"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs, of which the second diverges."""
    directory = tmp_path_factory.mktemp("sweeps") / "rates"
    code = sweep.main([CONFIG, f"--workdir={directory}", "--simulate=1", RATES, *FLAGS])
    assert code == errors.DONE
    return directory


def results(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "results.jsonl").read_text().splitlines()]


def test_a_record_says_what_a_run_was_and_what_came_out(finished: Path) -> None:
    first, second, third = results(finished)
    assert [r["status"] for r in (first, second, third)] == ["done", "diverged", "done"]
    assert "not finite in 2 updates in a row" in second["reason"] and "val" not in second
    assert first["lr_peak"] == 0.01 and first["overrides"] == {"optimizer.learning_rate": 0.01}
    kernels, biases = 64 * 8 + 8 * 8 + 8 * 10, 8 + 8 + 10
    assert first["N_matmul"] == kernels
    assert first["N_total"] == first["N_nonemb"] == kernels + biases
    # Forward and backward, but for the gradient of the inputs, which nobody needs.
    assert first["flops_per_step"] == 64 * (6 * kernels - 2 * 64 * 8)
    assert first["flops_exact"] == 6 * first["flops_per_step"]
    assert (first["steps"], first["examples"], first["tokens"]) == (6, 6 * 64, 0)
    assert first["devices"]["count"] == 1 and first["mesh"]["data"] == 1
    assert first["dtype"] == "float32" and first["versions"]["jax"]
    assert first["git"] == environment.revision()
    assert first["seconds"] > first["compile_seconds"] > 0
    assert first["examples_per_second"] > 0 and first["mfu"] > 0
    workdir = finished / "runs" / first["id"]
    validation = runs.curve(workdir, "loss", "validation")
    assert first["val"]["loss"] == validation[6]
    assert first["val_last"]["loss"] == pytest.approx((validation[3] + validation[6]) / 2)
    assert first["test"]["accuracy"] == runs.curve(workdir, "accuracy", "test")[6]
    status = json.loads((workdir / "status.json").read_text())
    assert status["state"] == "done" and (workdir / "checkpoints" / "6").is_dir()
    assert "step 6/6" in (workdir / "log.0.txt").read_text()
    assert {path.name for path in finished.iterdir() if path.name[0] != "."} == {
        *("runs", "results.jsonl", "sweep.json")
    }
    assert not (finished / ".cache").exists()


def test_a_run_of_a_sweep_is_what_the_trainer_makes(
    finished: Path, tmp_path: Path, user_environment: dict[str, str]
) -> None:
    """With another process's record of what it has trained before: nothing is carried over."""
    third = results(finished)[2]
    flags = [*FLAGS, "--config.optimizer.learning_rate=3e-2"]
    environment = {**user_environment, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    workdir = tmp_path / "alone"
    args = [CONFIG, f"--workdir={workdir}", "--simulate=1", *flags]
    done = runs.command("train", *args, environment=environment)
    assert done.returncode == 0, done.stderr
    assert runs.digests(workdir) == runs.digests(finished / "runs" / third["id"])


def test_a_finished_sweep_is_left_as_it_is(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "results.jsonl").read_bytes()
    command = [CONFIG, f"--workdir={finished}", "--simulate=1", RATES, *FLAGS]
    assert sweep.main(command) == errors.DONE
    assert "2 done, 1 diverged" in capsys.readouterr().out
    assert (finished / "results.jsonl").read_bytes() == before


def test_a_dry_run_counts_as_the_records_do_and_writes_nothing(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [CONFIG, f"--workdir={tmp_path / 'none'}", "--dry-run", RATES, *FLAGS]
    assert sweep.main(command) == errors.DONE
    lines = capsys.readouterr().out.splitlines()
    for line, record in zip(lines[1:4], results(finished), strict=True):
        assert record["id"] in line
        assert f" {record['N_total']} " in f"{line} "
    assert f"{results(finished)[0]['flops_exact']:.5g}" in lines[1]
    assert not (tmp_path / "none").exists()


def test_status_shows_every_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main(["status", f"--workdir={finished}"]) == errors.DONE
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["id", "cell", "state", "step", "loss", "seconds", "reason"]
    assert [row.split()[3] for row in rows[:3]] == ["done", "diverged", "done"]
    assert rows[0].split()[2] == "learning_rate=0.01"
    assert rows[-1] == "2 done, 1 diverged"


def test_runs_are_compared_by_what_differs(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, file = tmp_path / "curves.png", tmp_path / "table.json"
    command = ["compare", f"--workdir={finished}", f"--to={picture}", f"--json={file}"]
    assert sweep.main(command) == errors.DONE
    first, second, third = results(finished)
    rows = json.loads(file.read_text())["runs"]
    losses = [row["validation loss"] for row in rows]
    best = min((first, third), key=lambda record: record["val"]["loss"])
    assert [row["run"] for row in rows] == [
        best["id"],
        *({first["id"], third["id"]} - {best["id"]}),
        second["id"],
    ]
    assert losses[0] <= losses[1] and losses[2] is None
    assert "optimizer.learning_rate" in rows[0] and "model.features" not in rows[0]
    assert best["id"] in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")
    # Runs by themselves, and another metric, of which more is better.
    alone = [f"--workdir={finished / 'runs' / record['id']}" for record in (first, third)]
    assert sweep.main(["compare", *alone, "--metric=accuracy", f"--json={file}"]) == errors.DONE
    values = [row["validation accuracy"] for row in json.loads(file.read_text())["runs"]]
    assert values == sorted(values, reverse=True) and len(values) == 2


def test_runs_that_differ_in_much_have_a_row_per_key(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And two of one name are told apart by their paths."""
    first = finished / "runs" / results(finished)[0]["id"]
    other = tmp_path / first.name
    other.mkdir()
    overrides = ["seed=7", "model.norm=layer", "model.features=4", "train.steps=90"]
    overrides += ["data.batch_size=8", "optimizer.name=sgd", "optimizer.eps=1e-3"]
    (other / "config.json").write_text(configs.to_json(configs.load("digits_mlp", overrides)))
    (other / "metrics.jsonl").write_text((first / "metrics.jsonl").read_text())
    command = ["compare", f"--workdir={first}", f"--workdir={other}"]
    assert sweep.main(command) == errors.DONE
    settings, measured = capsys.readouterr().out.split("\n\n")
    assert str(first) in settings.splitlines()[0] and str(other) in settings.splitlines()[0]
    rows = {line.split()[0]: line.split()[1:] for line in settings.splitlines()[1:]}
    assert rows["data.batch_size"] == ["64", "8"] and rows["optimizer.name"] == ["adamw", "sgd"]
    assert "model.out_features" not in rows
    assert measured.splitlines()[0].split()[:4] == ["run", "step", "train", "loss"]


def test_records_are_exported(finished: Path, tmp_path: Path) -> None:
    for name in ("out.csv", "out.parquet"):
        to = tmp_path / name
        assert sweep.main(["export", f"--workdir={finished}", f"--to={to}"]) == errors.DONE
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    table = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert len(rows) == len(table) == 3
    for row, typed, record in zip(rows, table, results(finished), strict=True):
        assert row["id"] == typed["id"] == record["id"]
        assert float(row["overrides.optimizer.learning_rate"]) == record["lr_peak"]
        loss = record["val"]["loss"] if "val" in record else None
        assert typed["val.loss"] == loss
        assert row["val.loss"] == ("" if loss is None else str(loss))


def test_parquet_without_its_library_names_the_extra(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SystemExit):
        sweep.main(["export", f"--workdir={finished}", f"--to={tmp_path / 'x.parquet'}"])
    assert "pip install 'tessera[parquet]'; nearest: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "args, words",
    [
        ([CONFIG, "--workdir=x", "--sweep.optimizer.learning_rat=1,2"], "cell 1 .*unknown config"),
        (["--config=experiments/digits_vit.py", "--workdir=x"], "the sweep has no cells"),
        ([CONFIG], "--config and --workdir are needed"),
        ([CONFIG, "--workdir=x", "--retries=-1"], "must not be negative"),
        ([CONFIG, "--workdir=x", "--executor=slum"], "nearest: 'slurm'"),
        ([CONFIG, "--workdir=x", "--slots=-1"], "must not be negative"),
        ([CONFIG, "--workdir=x", "--devices-per-run=2"], "there are no accelerators here"),
        (["status", "--workdir=x"], "no sweep there"),
        (["compare", "--workdir=x"], "neither a sweep"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    args: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        sweep.main(args)
    assert end.value.code == errors.BAD_INPUT
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(words, error)
    assert list(tmp_path.iterdir()) == []


def test_bad_input_to_the_commands_that_read(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for args, words in (
        (["compare", f"--workdir={finished}", "--metric=los"], "nearest: 'loss'"),
        (["export", f"--workdir={finished}", f"--to={tmp_path / 'x.xls'}"], ".csv, .parquet"),
        (["skip", f"--workdir={finished}", "--cells=zz"], "'zz' is none of"),
        ([CONFIG, f"--workdir={finished / 'runs'}", RATES], "is no directory of a sweep"),
    ):
        with pytest.raises(SystemExit):
            sweep.main(args)
        assert words in capsys.readouterr().err


def test_cells_are_skipped_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs are fake: it is the queue that asks the records."""
    from launch.sweeping import slots
    from tests.launch.sweeping import fake_queue

    monkeypatch.setattr(slots, "WORKER", fake_queue.WORKER)
    directory = tmp_path / "s"
    command = [CONFIG, f"--workdir={directory}", "--sweep.seed=0,1,2"]
    monkeypatch.setenv("FAKE", '{"0": [3, 0], "1": [2, 0]}')
    assert sweep.main(command) == 1

    def states() -> list[str]:
        return [record["status"] for record in Store(directory).records()]

    assert states() == ["diverged", "failed", "done"]
    first, second, third = (record["id"] for record in Store(directory).records())
    assert sweep.main(command) == 1 and states() == ["diverged", "failed", "done"]
    assert sweep.main(["retry", f"--workdir={directory}", f"--cells={first},{second[:5]}"]) == 0
    assert states() == ["planned", "planned", "done"]
    assert [line["id"] for line in results(directory)] == [third]
    skipping = ["skip", f"--workdir={directory}", f"--cells={second}", "--reason=too dear"]
    assert sweep.main(skipping) == errors.DONE
    assert sweep.main(command) == errors.DONE
    assert states() == ["done", "skipped", "done"]
    assert results(directory)[1]["reason"] == "too dear"


@pytest.mark.slow
def test_a_sweep_killed_three_times_ends_as_one_that_was_not(
    tmp_path: Path, user_environment: dict[str, str]
) -> None:
    """Real runs: the line of every run, losses bitwise, up to what depends on the clock."""
    environment = {**user_environment, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    rates = "--sweep.optimizer.learning_rate=1e-2,1e30,3e-2,1e-3"
    settings = [*FLAGS, "--config.train.steps=400", "--config.train.eval_every=50"]

    def start(name: str) -> subprocess.Popen[str]:
        args = [CONFIG, f"--workdir={tmp_path / name}", "--slots=2", "--simulate=1", rates]
        command = [sys.executable, "-m", "launch.sweep", *args, *settings]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=runs.ROOT, env=environment, text=True, stdout=pipe, stderr=pipe
        )

    def end(process: subprocess.Popen[str]) -> None:
        _, error = process.communicate(timeout=300)
        assert process.returncode == errors.DONE, error

    began = time.monotonic()
    end(start("straight"))
    whole = time.monotonic() - began
    seed = random.randrange(2**32)
    print(f"moments of the kills: seed {seed}")
    moments = random.Random(seed)
    for _ in range(3):
        process = start("broken")
        time.sleep(moments.uniform(0.3, 0.8) * whole)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    end(start("broken"))
    apart = {*TIMES, "git"}  # somebody may be at work on the source meanwhile
    lines = [
        [{k: v for k, v in line.items() if k not in apart} for line in results(tmp_path / name)]
        for name in ("straight", "broken")
    ]
    assert lines[0] == lines[1]
    assert [line["status"] for line in lines[0]] == ["done", "diverged", "done", "done"]
