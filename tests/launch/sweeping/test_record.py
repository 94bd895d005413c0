"""What is read off a run's files, and what its end means."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from launch.run import config as configs
from launch.run import errors, meshes
from launch.run.build import build
from launch.sweeping import outcome, record
from nn import parallel
from nn.analysis import parameters

FACTS = {"batch_size": 4, "tokens_per_step": 12, "flops_per_step": 5.0}


def write(workdir: Path, *lines: tuple[int, str, dict[str, Any]]) -> None:
    rows = [{"step": step, "time": 0.0, "split": split, **values} for step, split, values in lines]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_last_evaluation_is_what_counts(tmp_path: Path) -> None:
    lines = [
        (1, "train", {"loss": 9.0, "mfu": 0.1, "tokens_per_second": 10.0}),
        (2, "validation", {"loss": 8.0}),
        (3, "train", {"loss": 7.0, "mfu": 0.3, "tokens_per_second": 30.0}),
        (4, "validation", {"loss": 6.0}),
        (5, "train", {"loss": 5.0, "mfu": 0.2, "tokens_per_second": 20.0}),
        (6, "validation", {"loss": 4.0}),
        (8, "validation", {"loss": 3.0}),
    ]
    write(tmp_path, *lines)
    assert record.of_metrics(tmp_path, FACTS) == {}  # the run has not ended
    write(tmp_path, *lines, (6, "test", {"loss": 4.0}))
    assert record.of_metrics(tmp_path, FACTS) == {}
    # The last evaluation was interrupted, and was made again.
    again = [(8, "validation", {"loss": 2.0}), (8, "test", {"loss": 1.0})]
    write(tmp_path, *lines, *again)
    found = record.of_metrics(tmp_path, FACTS)
    assert (found["val"], found["test"], found["train"]) == (
        {"loss": 2.0},
        {"loss": 1.0},
        {"loss": 5.0},
    )
    assert found["val_last"] == {"loss": (6.0 + 4.0 + 2.0) / 3}
    assert (found["steps"], found["examples"], found["tokens"]) == (8, 32, 96)
    assert found["flops_exact"] == 40.0
    assert (found["mfu"], found["tokens_per_second"]) == (0.2, 20.0)


def test_a_mean_over_what_is_not_finite_is_none(tmp_path: Path) -> None:
    end = [(2, "train", {"loss": None}), (2, "validation", {"loss": 1.0}), (2, "test", {"loss": 1})]
    write(tmp_path, (1, "validation", {"loss": None}), *end)
    assert record.of_metrics(tmp_path, FACTS)["val_last"] == {"loss": None}
    assert record.of_metrics(tmp_path / "none", FACTS) == {}


def test_counts_of_published_models() -> None:
    """All experts are multiplied; the head of GPT-2 is its table."""
    one: Any = meshes.abstract(dict.fromkeys(parallel.AXES, 1))

    def count(experiment: str) -> parameters.Counts:
        return record.count(build(configs.load(experiment), mesh=one))

    norms, embedding = 65 * 4096, 32_000 * 4096
    total = 46_702_792_704
    assert count("mixtral") == parameters.Counts(
        total, nonemb=total - 2 * embedding, matmul=total - norms - embedding
    )
    blocks, dim = 12 * 12 * 768**2, 768
    small = 12 * (13 * dim) + 2 * dim  # biases and norms
    assert count("gpt2") == parameters.Counts(
        total=124_439_808, nonemb=blocks + small, matmul=blocks + 50_257 * dim
    )


def judge(code: int, **changes: Any) -> outcome.Outcome:
    how: dict[str, Any] = {"failures": 0, "retries": 1, "measured": {"val": {"loss": 1.0}}}
    how |= {"metric": "loss", "advanced": True, "words": ""}
    return outcome.judge(code, **how | changes)


def test_what_the_end_of_a_try_means() -> None:
    assert judge(errors.DONE) == outcome.Outcome("done")
    for lost in ({"loss": None}, {}):
        assert judge(errors.DONE, measured={"val": lost}).status == "diverged"
    assert not judge(errors.DONE, measured={}).final
    assert judge(errors.DONE, measured={}, failures=1).final
    assert judge(errors.BAD_INPUT, words="no") == outcome.Outcome("failed", "no")
    assert judge(errors.NON_FINITE).status == "diverged" and judge(errors.NON_FINITE).final
    free = judge(errors.PREEMPTED, failures=5)
    assert (free.status, free.final, free.counts) == ("preempted", False, False)
    stuck = judge(errors.PREEMPTED, advanced=False)
    assert (stuck.status, stuck.final, stuck.counts) == ("failed", False, True)
    killed = judge(-signal.SIGKILL, words="out of memory", failures=1)
    assert killed == outcome.Outcome("failed", "killed by SIGKILL: out of memory")


def test_the_last_words_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert outcome.last_words(log) == ""
    log.write_text("x" * 9000 + "\nerror: the disk is full\nbye\n\n")
    assert outcome.last_words(log) == "the disk is full"
    log.write_text("Traceback\nKeyError: 'a'\n\n")
    assert outcome.last_words(log) == "KeyError: 'a'"


@pytest.mark.parametrize("lines", ["", "{broken\n"])
def test_a_run_without_metrics_has_none(tmp_path: Path, lines: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(lines)
    assert record.of_metrics(tmp_path, FACTS) == {}
