"""Small runs for the tests of the commands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]

# A decoder that compiles and trains in seconds; dropout, so that noise is resumed too.
TINY_GPT = {
    "model.dim": 32,
    "model.num_layers": 2,
    "model.num_heads": 8,
    "model.num_kv_heads": 8,
    "model.mlp_dim": 64,
    "model.context_length": 64,
    "model.dropout": 0.1,
    "data.batch_size": 16,
    "data.sequence_length": 32,
    "data.eval_batches": 2,
    "train.steps": 6,
    "train.log_every": 1,
    "train.eval_every": 3,
    "train.checkpoint_every": 2,
    "optimizer.warmup_steps": 2,
    "sample.length": 0,
    "metrics.tensorboard": "false",
}


SHORT = {
    name: value
    for name, value in TINY_GPT.items()
    if name.startswith(("train", "metrics", "optimizer"))
}


def arguments(workdir: Path, experiment: str = "bytes_gpt", **overrides: Any) -> list[str]:
    """Arguments of `launch.train`; keys of overrides have "__" for "."."""
    settings = TINY_GPT if experiment == "bytes_gpt" else SHORT
    settings = settings | {name.replace("__", "."): value for name, value in overrides.items()}
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    return [f"--config=experiments/{experiment}.py", f"--workdir={workdir}", *flags]


def command(
    name: str, *args: str, environment: dict[str, str], timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run a command as a user would, from the root of the checkout."""
    return subprocess.run(
        [sys.executable, "-m", f"launch.{name}", *args],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def curve(workdir: Path, name: str = "loss", split: str = "train") -> dict[int, float]:
    """step -> value of a metric."""
    lines = (json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[name] for line in lines if line["split"] == split}


def digests(workdir: Path) -> dict[str, Any]:
    """The content digest of every leaf of the newest checkpoint."""
    steps = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal())
    path = workdir / "checkpoints" / str(steps[-1]) / "manifest" / "metadata"
    leaves = json.loads(path.read_text())["leaves"]
    return {"step": steps[-1], **{name: leaf["digest"] for name, leaf in leaves.items()}}


def relative(a: dict[int, float], b: dict[int, float]) -> float:
    """Largest relative difference over the steps that both have."""
    steps = sorted(a.keys() & b.keys())
    assert steps
    x, y = (np.asarray([values[step] for step in steps]) for values in (a, b))
    return float(np.abs(x / y - 1).max())
