"""The queue, with fake runs: who runs what, how often, and what is left when things die."""

from __future__ import annotations

import collections
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launch.run import errors
from launch.sweeping import executor
from launch.sweeping.cells import resolve_cells
from launch.sweeping.store import TIMES, Store
from tests.launch import runs
from tests.launch.sweeping import fake_queue, fake_worker


def records(directory: Path) -> list[dict[str, Any]]:
    return Store(directory).records()


def results(directory: Path) -> list[dict[str, Any]]:
    """The lines of results.jsonl without what depends on the clock."""
    lines = map(json.loads, (directory / "results.jsonl").read_text().splitlines())
    return [{name: x for name, x in line.items() if name not in TIMES} for line in lines]


def starts(directory: Path, what: str = "start") -> collections.Counter[str]:
    """How often each cell was started, or ordered."""
    lines = (directory / ".journal").read_text().splitlines()
    return collections.Counter(line.split()[1] for line in lines if line.startswith(what))


def fake(monkeypatch: pytest.MonkeyPatch, codes: dict[int, list[Any]], pause: float = 0) -> None:
    monkeypatch.setenv("FAKE", json.dumps(codes))
    monkeypatch.setenv("PAUSE", str(pause))


def test_every_cell_is_run_once_and_the_results_are_in_their_order(tmp_path: Path) -> None:
    assert fake_queue.run(tmp_path / "s", [3, 1, 2], slots=2) == errors.DONE
    found = results(tmp_path / "s")
    assert [line["seed"] for line in found] == [3, 1, 2]
    assert {line["status"] for line in found} == {"done"}
    assert [line["val"]["loss"] for line in found] == [0.253, 0.503, 1 / 3 + 0.003]
    assert [line["flops_exact"] for line in found] == [6.0 * fake_worker.STEPS] * 3
    assert set(starts(tmp_path / "s").values()) == {1}
    # Again: nothing is run. With further cells: only those.
    assert fake_queue.run(tmp_path / "s", [3, 1, 2]) == errors.DONE
    assert fake_queue.run(tmp_path / "s", [0, 3]) == errors.DONE
    assert [line["seed"] for line in results(tmp_path / "s")] == [3, 1, 2, 0]
    assert set(starts(tmp_path / "s").values()) == {1}


@pytest.mark.parametrize(
    "codes, status, attempts, started, words",
    [
        ([0], "done", 1, 1, ""),
        ([2], "failed", 1, 1, "refused its config"),
        ([3], "diverged", 1, 1, "stayed non-finite"),
        ([1, 0], "done", 2, 2, ""),
        ([1], "failed", 3, 3, "exit code 1"),
        ([134, -signal.SIGKILL, 0], "done", 3, 3, ""),
        ([-signal.SIGKILL], "failed", 3, 3, "killed by SIGKILL"),
        ([75, 0], "done", 1, 2, ""),
    ],
)
def test_retries_go_by_the_exit_code(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    codes: list[int],
    status: str,
    attempts: int,
    started: int,
    words: str,
) -> None:
    """And the cell beside it, of the same worker, is run in any case."""
    fake(monkeypatch, {0: codes})
    code = fake_queue.run(tmp_path / "s", [0, 1])
    assert code == (executor.FAILED if status == "failed" else errors.DONE)
    first, second = records(tmp_path / "s")
    assert (first["status"], first["attempts"]) == (status, attempts)
    assert words in first["reason"]
    assert first["final"] and second["status"] == "done"
    assert starts(tmp_path / "s")[first["id"]] == started
    assert ("val" in first) == (status == "done")


def test_stopping_for_ever_without_getting_further_is_failing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch, {0: [75]})
    assert fake_queue.run(tmp_path / "s", [0]) == executor.FAILED
    (record,) = records(tmp_path / "s")
    assert record["reason"] == "stopped without getting any further"
    assert (record["attempts"], record["interruptions"]) == (3, 1)  # the first try did get further


def test_a_code_of_0_without_the_last_evaluation_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor.records, "of_metrics", lambda workdir, facts: {})
    assert fake_queue.run(tmp_path / "s", [0], retries=0) == executor.FAILED
    (record,) = records(tmp_path / "s")
    assert (record["status"], record["reason"]) == ("failed", "ended without its last evaluation")


def test_a_run_over_its_time_is_stopped_and_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch, {0: ["hang"]})
    assert fake_queue.run(tmp_path / "s", [0, 1], time_limit=0.01) == executor.FAILED
    first, second = records(tmp_path / "s")
    assert (first["status"], first["reason"]) == ("failed", "over its time limit of 0.01 min")
    assert starts(tmp_path / "s")[first["id"]] == 1
    assert second["status"] == "done"


def test_each_run_has_a_process_of_its_own_where_that_is_asked_for(tmp_path: Path) -> None:
    def processes(name: str, **options: Any) -> int:
        fake_queue.run(tmp_path / name, [0, 1, 2], **options)
        return len({x.split()[2] for x in (tmp_path / name / ".journal").read_text().splitlines()})

    assert processes("shared") == 1
    assert processes("isolated", isolate=True) == 3


def test_a_queue_that_need_not_wait_leaves_what_another_has(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    store.add(resolve_cells("digits_mlp", [], [{"seed": 0}, {"seed": 1}]))
    claim = store.claim(store.records()[0]["id"])
    assert claim is not None
    assert fake_queue.run(tmp_path / "s", [0, 1], wait=False) == errors.DONE
    assert [record["status"] for record in records(tmp_path / "s")] == ["planned", "done"]
    claim.release()


def test_a_worker_that_cannot_start_ends_the_queue_and_no_cell(tmp_path: Path) -> None:
    cells = resolve_cells("digits_mlp", [], [{"seed": 0}])
    store = Store(tmp_path / "s")
    store.add(cells)
    command = (sys.executable, "-c", "raise SystemExit('error: no device')")
    with pytest.raises(executor.StartError, match="no device"):
        executor.Queue(store, cells, executor.Options([dict(os.environ)], command)).run()
    (record,) = store.records()
    assert (record["status"], record["final"], record["attempts"]) == ("preempted", False, 0)
    assert fake_queue.run(tmp_path / "s", [0]) == errors.DONE


@pytest.fixture
def environment(user_environment: dict[str, str]) -> dict[str, str]:
    return {**user_environment, "PYTHONPATH": str(runs.ROOT), "PAUSE": "0.1"}


def queue_process(directory: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    """A queue of six fake runs, each half a second long, in two slots."""
    command = [sys.executable, fake_queue.__file__, str(directory), "6", "2"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, text=True, stdout=pipe, stderr=pipe)


def wait_for(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_a_queue_killed_three_times_leaves_the_results_of_one_that_was_not(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert fake_queue.run(straight, list(range(6))) == errors.DONE
    seed = random.randrange(2**32)
    print(f"moments of the kills: seed {seed}")
    moments = random.Random(seed)
    journal = broken / ".journal"
    for _ in range(3):
        lines = journal.read_text().count("\n") if journal.exists() else 0
        process = queue_process(broken, environment)
        wait_for(lambda: journal.exists() and journal.read_text().count("\n") > lines)  # noqa: B023
        time.sleep(moments.uniform(0, 0.6))
        process.kill()
        process.communicate()
    last = queue_process(broken, environment)
    _, error = last.communicate(timeout=60)
    assert last.returncode == errors.DONE, error
    assert results(broken) == results(straight)
    assert len(results(broken)) == 6
    # What was interrupted was started again, and no two of its processes overlapped: the fake
    # trainer fails where its directory is locked.
    assert {record["attempts"] for record in records(broken)} == {1}
    assert sum(record["interruptions"] for record in records(broken)) > 0
    pids = {int(line.split()[2]) for line in journal.read_text().splitlines()}
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 10)


def test_two_queues_at_once_share_the_cells(tmp_path: Path, environment: dict[str, str]) -> None:
    slow = {**environment, "BUILD": "0.5"}  # both start in this time
    both = [queue_process(tmp_path / "s", slow) for _ in range(2)]
    for process in both:
        _, error = process.communicate(timeout=60)
        assert process.returncode == errors.DONE, error
    assert len(results(tmp_path / "s")) == 6
    assert sorted(starts(tmp_path / "s", "order").values()) == [1] * 6
    processes = {line.split()[2] for line in (tmp_path / "s" / ".journal").read_text().splitlines()}
    assert len(processes) == 4  # the two slots of each had some


def test_a_queue_that_is_told_to_stop_waits_for_its_runs_to_save(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    directory = tmp_path / "s"
    process = queue_process(directory, environment)
    wait_for(lambda: (directory / ".journal").exists() and len(starts(directory)) == 2)
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == errors.PREEMPTED
    found = collections.Counter(record["status"] for record in records(directory))
    assert found["preempted"] == 2 and found["running"] == 0
    assert not any(record["final"] for record in records(directory))
    again = queue_process(directory, environment)
    again.communicate(timeout=60)
    assert again.returncode == errors.DONE
    assert {record["status"] for record in records(directory)} == {"done"}
