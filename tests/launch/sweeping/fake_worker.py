"""Stands in for launch.sweeping.worker where the queue is what is tested: no JAX, no model.

A run takes BUILD seconds until it has its directory, then `STEPS` steps of PAUSE seconds, counted
in status.json like a trainer's. The variable FAKE says how it ends: JSON, from the run's seed to
the codes of its tries, in order; the last one stays. A code below 0 is the signal that kills it,
"hang" never ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

STEPS = 5
FACTS = {"flops_per_step": 6.0, "tokens_per_step": 0, "N_total": 3, "git": {}}
stopped = threading.Event()


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    print(json.dumps({"ready": True}), flush=True)
    lines: list[str] = []
    more, ended = threading.Semaphore(0), threading.Event()

    def read() -> None:
        for line in sys.stdin:
            lines.append(line)
            more.release()
        ended.set()
        stopped.set()
        more.release()

    threading.Thread(target=read, daemon=True).start()
    while more.acquire() and lines:
        order = json.loads(lines.pop(0))
        code = run(Path(order["workdir"]), json.loads(order["config"]))
        print(json.dumps({"code": code, "seconds": 1.0, "compile_seconds": 0.5}), flush=True)
        if code not in (0, 3):
            raise SystemExit(code)


def run(workdir: Path, config: dict[str, Any]) -> int:
    journal(workdir, f"order {workdir.name}")
    time.sleep(float(os.environ.get("BUILD", "0")))
    lock = os.open(workdir / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where two work on one cell
    path = workdir / "status.json"
    status = json.loads(path.read_text()) if path.exists() else {"step": 0, "tries": 0}
    status["tries"] += 1
    journal(workdir, f"start {workdir.name}")
    print(json.dumps({"facts": FACTS}), flush=True)
    codes = json.loads(os.environ.get("FAKE", "{}")).get(str(config["seed"]), [0])
    code = codes[min(status["tries"], len(codes)) - 1]
    pause = float(os.environ.get("PAUSE", "0"))
    while status["step"] < STEPS and not stopped.is_set() and code != 2:
        time.sleep(pause)
        status["step"] += 1
        status["heartbeat"] = time.time()
        write(path, status)
    while code == "hang" and not stopped.is_set():
        time.sleep(0.02)
    if code == 0 and stopped.is_set():
        code = 75
    if code == 0:
        rows = [{"step": STEPS, "time": 0.0, "split": s, "loss": loss(config)} for s in SPLITS]
        write(workdir / "metrics.jsonl", *rows)
    write(path, status)
    journal(workdir, f"end {workdir.name}")
    os.close(lock)
    if isinstance(code, int) and code < 0:
        os.kill(os.getpid(), -code)
    return code if isinstance(code, int) else 75


SPLITS = ("train", "validation", "test")


def loss(config: dict[str, Any]) -> float | None:
    """A number of the config alone; none at a rate that is too high."""
    rate: float = config["optimizer"]["learning_rate"]
    return None if rate > 1 else 1 / (1 + config["seed"]) + rate


def write(path: Path, *rows: dict[str, Any]) -> None:
    new = path.with_suffix(".tmp")
    new.write_text("".join(json.dumps(row) + "\n" for row in rows))
    new.replace(path)


def journal(workdir: Path, line: str) -> None:
    with (workdir.parent.parent / ".journal").open("a") as file:
        file.write(f"{line} {os.getpid()}\n")


if __name__ == "__main__":
    main()
