"""The record of a run, `run.json`: what it was, what it cost, what came out.

id, overrides, config_digest, seed, parent    parent: the run whose parameters it starts from
status, final, reason, exit_code              final: nobody will run it again by itself
attempts, interruptions, started, finished    attempts: tries that ended, well or not
seconds, compile_seconds                      of all tries, compilation and evaluation included
git, versions, devices, mesh, dtype
N_total, N_nonemb, N_matmul                   see nn/analysis/parameters.py
batch_size, steps, examples, tokens, lr_peak, warmup_steps, schedule
flops_per_step, flops_exact                   of the model; matrix products; attention in full
train, val, test                              the last metrics of each split, by name
val_last                                      mean over the last `LAST` validations
examples_per_second, tokens_per_second, mfu   medians
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import FrozenConfigDict

from launch.run import config as configs
from launch.run import environment, metrics, shapes
from launch.run.build import Run
from nn.analysis import parameters
from nn.parallel.mesh import compiled_for
from nn.parallel.weight import is_named

LAST = 3
RATES = ("examples_per_second", "tokens_per_second", "mfu")


def of_config(config: FrozenConfigDict) -> dict[str, Any]:
    """What the config alone says."""
    return {
        "config_digest": configs.digest(config),
        "seed": config.seed,
        "parent": config.tune.base or None,
        "batch_size": config.data.batch_size,
        "lr_peak": config.optimizer.learning_rate,
        "warmup_steps": config.optimizer.warmup_steps,
        "schedule": config.optimizer.schedule,
    }


def of_run(run: Run, flops_per_step: float) -> dict[str, Any]:
    """What is known once the model is built, before the first step."""
    devices = run.rule.task.mesh.devices.reshape(-1)
    kind = {"backend": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices)}
    counts = count(run)
    return {
        "git": environment.revision(),
        "versions": environment.versions(),
        "devices": kind,
        "mesh": dict(run.rule.task.mesh.shape),
        "dtype": np.dtype(run.rule.task.model.dtype).name,
        "N_total": counts.total,
        "N_nonemb": counts.nonemb,
        "N_matmul": counts.matmul,
        "flops_per_step": flops_per_step,
        "tokens_per_step": shapes.tokens(run.config, run.rule.task),
    }


def count(run: Run) -> parameters.Counts:
    """The parameters of a run by what its forward pass does with them; traces, computes nothing."""
    variables = jax.tree.map(lambda x: x.value if is_named(x) else x, run.named, is_leaf=is_named)
    rest = {name: tree for name, tree in variables.items() if name != "params"}
    task = run.rule.task

    def forward(params: Any, rest: Any, example: Any) -> Any:
        return task.model.apply({"params": params, **rest}, *example)

    with compiled_for("tpu"):  # there all experts are multiplied, where CPUs look some up
        found = parameters.uses(forward, variables["params"], rest, task.example)
    return parameters.count(run.named["params"], found)


def of_metrics(workdir: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What metrics.jsonl says; {} where the last evaluation is missing.

    facts: the record so far.
    """
    path = workdir / metrics.FILE
    lines = metrics.read(path) if path.exists() else []
    # A run that goes on may evaluate a step again: the later line is the one that counts.
    by_split: dict[str, dict[int, dict[str, Any]]] = {split: {} for split in metrics.SPLITS}
    for line in lines:
        by_split[line["split"]][line["step"]] = line
    train, val, test = (list(by_split[split].values()) for split in metrics.SPLITS)
    if not (train and val and test) or val[-1]["step"] != test[-1]["step"]:
        return {}
    steps = val[-1]["step"]
    found: dict[str, Any] = {
        "steps": steps,
        "examples": steps * facts["batch_size"],
        "tokens": steps * facts["tokens_per_step"],
        "flops_exact": steps * facts["flops_per_step"],
    }
    for name, rows in (("train", train), ("val", val), ("test", test)):
        found[name] = {key: rows[-1][key] for key in rows[-1] if key not in _NO_METRIC}
    found["val_last"] = {
        key: _mean([row[key] for row in val[-LAST:] if key in row]) for key in found["val"]
    }
    for name in RATES:
        if values := [line[name] for line in train if name in line and line[name] is not None]:
            found[name] = statistics.median(values)
    return found


_NO_METRIC = {*metrics.RESERVED, *RATES, "step_time", "memory_bytes"}


def _mean(values: list[float | None]) -> float | None:
    """None, as JSON has it for what is not finite, where one of the values is."""
    finite = [value for value in values if value is not None]
    return math.fsum(finite) / len(finite) if values and len(finite) == len(values) else None
