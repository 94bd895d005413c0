"""From a built run to its end: what is opened before the loop, and what follows it."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import jax

from launch.cluster import distributed, hardware
from launch.data.loader import Loader, check_fingerprint
from launch.run import config as configs
from launch.run import environment, errors, report, shapes
from launch.run.build import Run, loader, open_data
from launch.run.checkpoint import Checkpoints
from launch.run.faults import Faults
from launch.run.loop import Loop
from launch.run.meter import Meter
from launch.run.metrics import Progress, Writer
from launch.run.pretrained import source_of
from launch.run.profile import Profiler
from launch.run.restore import check_base, start_of
from launch.run.signals import Signals, Watchdog
from launch.run.state import abstract_state
from launch.run.workdir import WorkDir

SPLITS = ("train", "validation", "test")


def open_run(run: Run, workdir: str, profile: str | None) -> Loop:
    """Check everything that can be wrong, then make the work directory; compiles nothing.

    Raises ValueError, FileNotFoundError and the like: see the parts that raise them.
    """
    config, rank = run.config, jax.process_index()
    work = WorkDir(workdir, rank)
    text = configs.to_json(config)
    distributed.check_same("the config", text)
    if config.metrics.wandb and importlib.util.find_spec("wandb") is None:
        raise ValueError("metrics.wandb=true needs the extra: pip install 'tessera[wandb]'")
    work.check(text)
    check_base(config)
    loaders = {
        split: loader(config, open_data(config, split), split == "train") for split in SPLITS
    }
    fingerprint = loaders["train"].fingerprint()
    profiler = Profiler(profile, work.profile, 0, config.train.steps)
    work.open(text, environment.describe())
    distributed.check_shared(work.path)
    project = config.metrics.wandb_project if config.metrics.wandb else None
    return Loop(
        run=run,
        work=work,
        checkpoints=Checkpoints(work.checkpoints, config.train.keep_checkpoints),
        loaders=loaders,
        writer=Writer(
            work.path, config.metrics.tensorboard, project, config.to_dict(), process_index=rank
        ),
        progress=Progress(config.train.steps, config.train.log_every, quiet=rank > 0),
        meter=_meter(run, loaders["train"]),
        profiler=profiler,
        metadata={
            "config": config.to_dict(),
            "config_digest": configs.digest(config),
            "data": fingerprint,
            "versions": environment.versions(),
        },
    )


def _meter(run: Run, train: Loader) -> Meter:
    """Counts examples or tokens, and the floating-point operations that a step needs."""
    rule, config = run.rule, run.config
    rows = shapes.of_rows(config, train)
    needed = shapes.model_flops(config, rule.task, abstract_state(rule), rows)
    tokens = shapes.tokens(config, rule.task)
    peak = hardware.peak_flops(rule.task.model.dtype)
    return Meter(
        examples=0 if tokens else config.data.batch_size,
        tokens=tokens,
        flops=needed.total,
        peak=None if peak is None else peak * rule.task.mesh.size,
    )


def restore(loop: Loop) -> Any:
    """The newest saved state, or the first one."""
    rule = loop.run.rule
    if loop.checkpoints.latest_step() is None:
        loop.writer.truncate(0)
        if directory := loop.run.config.model.pretrained:
            loop.metadata["pretrained"] = source_of(directory)
        return start_of(loop.run)
    state, metadata = loop.checkpoints.restore(abstract_state(rule))
    if metadata["data"] is not None:  # an imported model has seen none yet
        check_fingerprint(metadata["data"], loop.metadata["data"])
    if "pretrained" in metadata:
        loop.metadata["pretrained"] = metadata["pretrained"]
    loop.writer.truncate(int(state.step))
    loop.progress.say(f"going on from step {int(state.step)}")
    return state


def train(loop: Loop) -> int:
    """Run the loop and what follows it. Returns an exit code."""
    for note in loop.run.notes:
        loop.progress.say(note)
    with errors.guard_input():
        state = restore(loop)
        faults = Faults.from_environment()
    timeout = loop.run.config.train.hang_timeout
    with Signals() as signals, Watchdog(timeout) as watchdog:
        state, code = loop.train(state, signals, faults, watchdog)
        if code == errors.DONE:
            loop.save(state)
        loop.checkpoints.wait()
    if code == errors.DONE:
        finish(loop, state)
    ends = {errors.DONE: "done", errors.PREEMPTED: "preempted"}
    loop.profiler.close()
    loop.writer.close()
    loop.checkpoints.close()
    loop.work.close(ends[code] if code in ends else "failed", f"exit code {code}")
    return code


def finish(loop: Loop, state: Any) -> None:
    """The last evaluation beside the baselines, a sample, the curves."""
    run = loop.run
    rows = {split: loop.evaluate(state, split) for split in ("validation", "test")}
    text = report.sample(run, state)  # on all devices, hence by all processes
    if jax.process_index():
        return
    references = report.baselines(run, "validation")
    if references:
        rows["validation"] |= references
        rows["test"] |= report.baselines(run, "test")
    print(f"\n{report.table(rows)}\n")
    if text is not None:
        print(f"--- sample ---\n{text}\n--------------")
    if path := report.plot(loop.work.path, references):
        print(f"curves: {path}")
    sys.stdout.flush()
