"""Alternating rounds: in each, ours and every peer run once, each in a process of its own."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.bench import ratios
from launch.bench.workloads import WORKLOADS

ROOT = Path(__file__).resolve().parents[2]
OURS = "ours"
LIMIT = 3600  # seconds for one worker
LINES = 8  # of a failed worker's output that are shown
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclasses.dataclass(frozen=True)
class Plan:
    """rounds; steps: samples per round; size: "auto" or of `workloads.SIZES`."""

    rounds: int = 5
    steps: int = 10
    threads: int = 2
    size: str = "auto"


class WorkerFailed(Exception):
    """A worker ended without its line of JSON; the message holds its last lines."""


@dataclasses.dataclass
class Row:
    """One workload and one peer. error: why there is no ratio; ours alone may still be known."""

    workload: str
    peer: str
    size: str = ""
    time: ratios.Ratio | None = None
    cpu_time: ratios.Ratio | None = None
    ours: dict[str, Any] | None = None
    theirs: dict[str, Any] | None = None
    error: str = ""
    missing: bool = False  # the error is a package that is not installed


def environment(threads: int, scratch: str) -> dict[str, str]:
    """What a worker sees: the caller's variables, its threads, caches that start empty."""
    env = dict(os.environ)
    env.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    flags = (f for f in env.pop("XLA_FLAGS", "").split() if "device_count" not in f)
    env["XLA_FLAGS"] = " ".join(flags)
    for name in ("NPROC", "JAX_NUMPY_RANK_PROMOTION", "JAX_COMPILATION_CACHE_DIR"):
        env.pop(name, None)
    return env | {"TORCHINDUCTOR_CACHE_DIR": scratch, "TF_CPP_MIN_LOG_LEVEL": "2"}


def work(order: Mapping[str, Any], env: Mapping[str, str]) -> dict[str, Any]:
    """Run one worker to its end.

    Raises:
      WorkerFailed: it failed, or took longer than `LIMIT`.
    """
    command = [sys.executable, "-m", "launch.bench.worker", json.dumps(order)]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        raise WorkerFailed(f"took longer than {LIMIT} s") from None
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines and lines[-1].startswith("{"):
        result: dict[str, Any] = json.loads(lines[-1])
        return result
    last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-LINES:]
    raise WorkerFailed("\n".join([f"exit code {done.returncode}", *last]))


def compare(
    workload: str,
    peers: Sequence[str],
    plan: Plan,
    say: Callable[[str], None] = lambda line: None,
    run: Callable[..., dict[str, Any]] = work,
) -> list[Row]:
    """A row per peer that the workload has, in alternating rounds. One that fails is left out of
    the rounds that follow."""
    contenders = [OURS, *(peer for peer in peers if peer in WORKLOADS[workload].peers)]
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    errors: dict[str, tuple[str, bool]] = {}
    order = {"workload": workload, "steps": plan.steps, "threads": plan.threads}
    order |= {"size": plan.size, "device": "auto"}
    with tempfile.TemporaryDirectory() as scratch:
        env = environment(plan.threads, scratch)
        for i in range(plan.rounds):
            # Ours is first in the first round, where it sets the device; then they take turns.
            turn = i % len(contenders)
            for name in contenders[turn:] + contenders[:turn]:
                if name in errors or OURS in errors:
                    continue
                try:
                    result = run(order | {"peer": name}, env)
                except WorkerFailed as failure:
                    errors[name] = (str(failure), False)
                    continue
                if "missing" in result:
                    errors[name] = (_install(result["missing"]), True)
                    continue
                results[name].append(result)
                order |= {"size": result["size"], "device": result["device"]}
                ms = ratios.typical([result["step_ms"]])
                say(f"{workload}: round {i + 1} of {plan.rounds}: {name}: {ms:.4g} ms")
    return [_row(workload, name, results, errors) for name in contenders[1:]] or [
        _row(workload, "", results, errors)
    ]


def _install(missing: Sequence[str]) -> str:
    return f"needs {' and '.join(missing)}: make bench installs them, or pip install -e '.[peers]'"


def _row(
    workload: str,
    peer: str,
    results: Mapping[str, list[dict[str, Any]]],
    errors: Mapping[str, tuple[str, bool]],
) -> Row:
    row = Row(workload, peer)
    if OURS in errors:
        row.error = f"ours: {errors[OURS][0]}"
        return row
    row.ours = summary(results[OURS])
    row.size = results[OURS][0]["size"]
    if peer in errors:
        row.error, row.missing = errors[peer]
    elif peer:
        row.theirs = summary(results[peer])
        row.time, row.cpu_time = (
            ratios.ratio([r[key] for r in results[OURS]], [r[key] for r in results[peer]])
            for key in ("step_ms", "cpu_ms")
        )
        counts = row.ours["parameters"], row.theirs["parameters"]
        if counts[0] != counts[1]:
            row.error = f"not the same work: {counts[0]} parameters here, {counts[1]} there"
    return row


def summary(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One contender over its rounds; the first step is that of the first round, without caches."""
    first = rounds[0]
    names = ("parameters", "device", "losses", "versions", "flops", "peak", "peak_note")
    kept = {name: first[name] for name in names}
    return kept | {
        "step_ms": ratios.typical([r["step_ms"] for r in rounds]),
        "cpu_ms": ratios.typical([r["cpu_ms"] for r in rounds]),
        "first_step_s": first["first_step_s"],
        "memory_mb": max(r["memory_mb"] for r in rounds),
        "samples_ms": [r["step_ms"] for r in rounds],
        "samples_cpu_ms": [r["cpu_ms"] for r in rounds],
    }
