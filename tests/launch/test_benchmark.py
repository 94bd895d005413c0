"""The benchmark: its arithmetic, its rounds with workers that are made up, and one real run."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from launch import benchmark
from launch.bench import ratios, report, rounds, worker
from launch.bench.job import Job, measure
from launch.bench.workloads import OURS, PEERS, SIZES, WORKLOADS

ROOT = Path(__file__).resolve().parents[2]


def result(ms: Sequence[float], **more: Any) -> dict[str, Any]:
    """What a worker reports."""
    fixed = {
        "first_step_s": 2.0,
        "step_ms": list(ms),
        "cpu_ms": [2 * x for x in ms],
        "losses": [5.0, 4.0],
        "parameters": 10,
        "device": "cpu",
        "memory_mb": 100.0,
        "versions": {"jax": "1"},
        "flops": {"full": 4e6, "causal": 3e6},
        "peak": 8e9,
        "peak_note": "a peak",
        "size": "cpu",
    }
    return fixed | more


def test_quantiles_lie_between_the_values() -> None:
    assert ratios.quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert ratios.quantile([1.0, 2.0], 0.25) == 1.25
    assert [ratios.quantile([7.0], share) for share in (0.1, 0.9)] == [7.0, 7.0]


def test_ratio_is_taken_within_each_round() -> None:
    """A machine that is ten times slower in one round changes nothing."""
    ours = [[1.0, 2.0, 9.0], [20.0, 20.0, 20.0], [3.0, 3.0, 3.0]]
    peer = [[4.0, 4.0, 4.0], [40.0, 10.0, 99.0], [4.0, 4.0, 4.0]]
    found = ratios.ratio(ours, peer)
    assert found.rounds == (0.5, 0.5, 0.75)
    assert found.median == 0.5
    assert (found.low, found.high) == (0.5, pytest.approx(0.7))
    assert ratios.typical(ours) == 3.0
    with pytest.raises(ValueError):
        ratios.ratio(ours, peer[:2])


def test_rounds_alternate_and_the_first_sets_the_device() -> None:
    seen: list[dict[str, Any]] = []

    def run(order: dict[str, Any], env: dict[str, str]) -> dict[str, Any]:
        seen.append(order)
        return result([2.0 if order["peer"] == "ours" else 4.0], device="accelerator")

    plan = rounds.Plan(rounds=3, steps=1)
    rows = rounds.compare("decoder", ["torch", "flax", "timm"], plan, run=run)
    names = [order["peer"] for order in seen]
    turns = [["ours", "torch", "flax"], ["torch", "flax", "ours"], ["flax", "ours", "torch"]]
    assert names == [name for turn in turns for name in turn]
    assert [order["device"] for order in seen] == ["auto"] + ["accelerator"] * 8
    assert [order["size"] for order in seen] == ["auto"] + ["cpu"] * 8
    assert [(row.peer, row.error) for row in rows] == [("torch", ""), ("flax", "")]
    assert rows[0].time is not None and rows[0].time.median == 0.5


def test_a_failing_worker_shows_its_last_lines() -> None:
    def run(order: dict[str, Any], env: dict[str, str]) -> dict[str, Any]:
        if order["peer"] == "torch":
            raise rounds.WorkerFailed("exit code 1\nMemoryError: too much")
        return result([2.0])

    rows = rounds.compare("decoder", ["torch", "flax"], rounds.Plan(2, 1), run=run)
    assert "MemoryError: too much" in report.line(rows[0])
    assert rows[0].time is None and not rows[0].missing
    assert rows[1].time is not None and rows[1].time.rounds == (1.0, 1.0)


def test_nothing_runs_against_ours_that_failed() -> None:
    calls: list[str] = []

    def run(order: dict[str, Any], env: dict[str, str]) -> dict[str, Any]:
        calls.append(order["peer"])
        raise rounds.WorkerFailed("exit code 1")

    (row,) = rounds.compare("decoder", ["flax"], rounds.Plan(2, 1), run=run)
    assert calls == ["ours"]
    assert "failed: ours: exit code 1" in report.line(row)


def test_a_peer_that_is_not_installed_says_how_to_install_it() -> None:
    def run(order: dict[str, Any], env: dict[str, str]) -> dict[str, Any]:
        return {"missing": ["torch"]} if order["peer"] == "torch" else result([2.0])

    (row,) = rounds.compare("decoder", ["torch"], rounds.Plan(1, 1), run=run)
    assert row.missing
    assert "not installed: needs torch: make bench installs" in report.line(row)


def test_different_work_is_no_ratio_to_trust() -> None:
    def run(order: dict[str, Any], env: dict[str, str]) -> dict[str, Any]:
        return result([2.0], parameters=10 if order["peer"] == "ours" else 11)

    (row,) = rounds.compare("decoder", ["flax"], rounds.Plan(1, 1), run=run)
    assert row.error == "not the same work: 10 parameters here, 11 there"


def test_a_worker_that_really_fails(tmp_path: Path) -> None:
    order = {"workload": "no such", "peer": "flax", "size": "tiny", "device": "cpu", "steps": 1}
    env = rounds.environment(1, str(tmp_path))
    with pytest.raises(rounds.WorkerFailed, match="exit code 1\n(.*\n)*KeyError: 'no such'"):
        rounds.work(order | {"threads": 1}, env)


def test_workers_get_their_threads_and_no_simulated_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_dump_to=x")
    env = rounds.environment(3, str(tmp_path))
    assert env["OMP_NUM_THREADS"] == env["MKL_NUM_THREADS"] == "3"
    assert env["XLA_FLAGS"] == "--xla_dump_to=x"
    assert "NPROC" not in env


def test_the_worker_looks_for_the_packages_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.importlib.util, "find_spec", lambda name: None)
    order = {"workload": "decoder", "peer": "transformers", "size": "tiny", "steps": 1}
    assert worker.run(order | {"threads": 1}) == {"missing": ["torch", "transformers"]}


def test_a_loss_that_does_not_fall_is_an_error() -> None:
    job = Job(lambda: 0.06, lambda x: None, "cpu", {}, loss=lambda x: 3.0)
    with pytest.raises(RuntimeError, match="did not fall"):
        measure(job, 1)


def test_short_steps_are_timed_together() -> None:
    calls: list[int] = []
    found = measure(Job(lambda: calls.append(1), lambda x: None, "cpu", {}), 2)
    assert len(found["step_ms"]) == len(found["cpu_ms"]) == 2
    assert len(calls) > 100
    assert max(found["step_ms"]) < 10
    assert found["memory_mb"] > 10


def test_every_peer_can_run_the_workloads_that_name_it() -> None:
    """Read from the source: the packages need not be there."""
    for name, workload in WORKLOADS.items():
        assert set(workload.sizes) == set(SIZES), name
        for peer in (OURS, *(PEERS[peer] for peer in workload.peers)):
            tree = ast.parse((ROOT / f"{peer.module.replace('.', '/')}.py").read_text("utf-8"))
            functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert workload.kind in functions, (name, peer.module)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--workload=decodr", "nearest: 'decoder'"),
        ("--peer=flux", "nearest: 'flax'"),
        ("--rounds=0", "--rounds=0: must be at least 1"),
        ("--rounds=x", "invalid int value: 'x'"),
        ("--size=tny", "nearest: 'tiny'"),
        ("--json=no/such/folder/x.json", "no directory"),
        ("--wrkload=x", "unrecognized arguments: --wrkload=x"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    argument: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        benchmark.main([argument])
    assert exit_info.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("error: ") and message in err


def test_a_peer_without_the_workload_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark.main(["--workload=resnet18", "--peer=torch"])
    assert "choose from flax, timm" in capsys.readouterr().err


def test_list_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in WORKLOADS)
    with pytest.raises(SystemExit) as exit_info:
        benchmark.main(["--help"])
    assert exit_info.value.code == 0
    assert benchmark.EXAMPLE in capsys.readouterr().out


def test_exit_code_and_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = rounds.Row("decoder", "flax", error="exit code 1")
    monkeypatch.setattr(rounds, "compare", lambda *args, **more: [row])
    assert benchmark.main(["--workload=decoder"]) == 1
    row.ours, row.size, row.missing = rounds.summary([result([2.0])]), "cpu", True
    assert benchmark.main(["--workload=decoder"]) == 0
    out = capsys.readouterr().out
    assert "2 GFLOP/s full" in out
    assert "MFU 25.0% full, 18.8% causal (attention) of a peak" in out


@pytest.mark.slow
def test_a_real_run(tmp_path: Path, user_environment: dict[str, str]) -> None:
    """As a user would, from elsewhere in the checkout; the Linen peer needs no extra."""
    file = tmp_path / "bench.json"
    command = [sys.executable, "-m", "launch.benchmark", "--workload=decoder", "--peer=flax"]
    run = subprocess.run(
        [*command, "--size=tiny", "--rounds=1", "--steps=2", f"--json={file}"],
        cwd=ROOT,
        env=user_environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "28,032 parameters on both sides" in run.stdout
    found = json.loads(file.read_text())
    (row,) = found["rows"]
    assert found["machine"]["threads"] == 2 and found["machine"]["cpu"]
    assert row["time"]["median"] > 0 and len(row["time"]["rounds"]) == 1
    assert row["sizes"]["dim"] == 32
    for side in ("ours", "theirs"):
        assert row[side]["losses"][1] < row[side]["losses"][0]
        assert len(row[side]["samples_ms"][0]) == 2
        assert row[side]["versions"]["jax"] and row[side]["memory_mb"] > 10
    assert row["ours"]["flops"]["full"] > row["ours"]["flops"]["causal"] > 0
