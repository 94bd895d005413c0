"""Checkpoints: asynchronous, atomic, verified, and restored onto any mesh.

Orbax writes the arrays; a manifest of our own beside them holds the shape, dtype and digest of
every leaf, and the metadata of the run. On disk, for each step:

    <step>/state/               the arrays, one entry per leaf ("params/block/kernel")
    <step>/manifest/metadata    JSON: see launch/run/manifest.py
    <step>/commit_success.txt   written last: without it the step does not exist

Use:

    checkpoints = Checkpoints(directory, keep=2)
    if checkpoints.latest_step() is not None:
        state, metadata = checkpoints.restore(abstract_state)
    checkpoints.save(step, state, metadata)  # returns at once; the files follow
    checkpoints.close()                      # waits for them
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from launch.run import manifest as manifests
from launch.run.manifest import Damaged

_COMMIT = "commit_success.txt"
logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns of its own defaults


def warn(line: str) -> None:
    """The default reporter of what went wrong and was survived."""
    print(f"warning: {line}", file=sys.stderr, flush=True)


class Checkpoints:
    """The checkpoints in one directory.

    Args:
      directory: made at the first save; a whole run's checkpoints lie in it.
      keep: how many of the newest steps stay; None opens the directory for reading only.
      report: takes a line about each damaged or unfinished step that is passed over.
    Raises:
      ValueError: `keep` below 1.
    """

    def __init__(
        self, directory: str | Path, keep: int | None = 2, report: Callable[[str], None] = warn
    ) -> None:
        if keep is not None and keep < 1:
            raise ValueError(f"keep={keep}: at least the newest checkpoint must stay; nearest: 1")
        self.directory = Path(directory).absolute()
        self._report = report if jax.process_index() == 0 else lambda line: None
        self._read_only = keep is None
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=None if keep is None else ocp.checkpoint_managers.LatestN(keep),
                # A directory without its commit file, half written or half copied, is no step.
                atomicity_options=ocp.options.AtomicityOptions(
                    mode=ocp.options.AtomicityMode.COMMIT_FILE
                ),
                read_only=self._read_only,
                save_interval_steps=0 if self._read_only else 1,
                create=not self._read_only,
                single_host_load_and_broadcast=True,
            ),
            item_names=("state", "manifest"),
        )
        for step in _steps(self.directory, committed=False):
            self._report(f"{self.directory / str(step)} is not a finished checkpoint: ignored")

    def steps(self) -> list[int]:
        """The finished steps, oldest first; waits for a save that is under way."""
        self.wait()
        return sorted(map(int, self._manager.all_steps()))

    def latest_step(self) -> int | None:
        """The newest finished step; None when there is none."""
        steps = self.steps()
        return steps[-1] if steps else None

    def save(self, step: int, state: Any, metadata: Mapping[str, Any], force: bool = False) -> bool:
        """Start to save `state`; True when started, False when `step` is there already.

        Returns once the state is copied, so that its buffers may be donated. What goes wrong
        afterwards is raised by the next `save`, `wait` or `close`.

        Args:
          state: any pytree of arrays. Keys may hold neither "." nor "/".
          metadata: what JSON can hold; `read_metadata` returns it without the arrays.
          force: write `step` again when it is there already.
        Raises:
          ValueError: bad keys, or a newer step is there (`delete_after` it first).
          OSError: an earlier save could not be written, such as on a full disk.
        """
        self.wait()
        steps = sorted(map(int, self._manager.all_steps()))
        if steps and step < steps[-1]:
            raise ValueError(
                f"step {step} is older than the newest checkpoint, {steps[-1]}: "
                f"call delete_after({step}) first, or save a later step"
            )
        if step in steps:
            if not force:
                return False
            self._manager.delete(step)
        leaves = manifests.flatten(state)
        manifest = manifests.make(leaves, metadata)
        arrays = {name: x for name, x in leaves.items() if x.size}  # Orbax refuses empty ones
        try:
            started = self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(arrays), manifest=ocp.args.JsonSave(manifest)
                ),
            )
        except Exception as error:
            raise _not_written(self.directory, error) from error
        if not started:
            raise OSError(f"{self.directory}: step {step} was not saved, for no known reason")
        return True

    def restore(
        self, abstract_state: Any, step: int | None = None, partial: bool = False
    ) -> tuple[Any, dict[str, Any]]:
        """The newest good state and its metadata, laid out as `abstract_state` says.

        A damaged step is reported and the one before it tried; once that is restored the damaged
        directory is renamed to `<step>.damaged`, so that training can pass it.

        Args:
          abstract_state: arrays or jax.ShapeDtypeStructs with shardings, of any mesh.
          step: this step and no other.
          partial: leaves that were saved but are not asked for are left out, not refused.
        Raises:
          FileNotFoundError: nothing was saved, or not `step`.
          ValueError: the checkpoint is of another model (names a leaf), or all are damaged.
        """
        steps = self.steps()
        if not steps or (step is not None and step not in steps):
            there = ", ".join(map(str, steps)) or "none"
            what = "" if step is None else f" of step {step}"
            raise FileNotFoundError(f"no checkpoint{what} in {self.directory} (there: {there})")
        wanted = manifests.flatten(abstract_state)
        damaged: dict[int, str] = {}
        for number in reversed(steps) if step is None else [step]:
            try:
                state, metadata = self._restore(number, wanted, partial)
            except Damaged as error:
                damaged[number] = str(error)
                self._report(f"checkpoint {number} in {self.directory} is damaged: {error}")
                continue
            if damaged:
                self._report(f"going back to checkpoint {number}")
                self._set_aside(list(damaged))
            return jax.tree.unflatten(jax.tree.structure(abstract_state), state), metadata
        found = "; ".join(f"step {number}: {text}" for number, text in damaged.items())
        raise ValueError(
            f"no checkpoint in {self.directory} can be used ({found}); restore a copy, "
            "or start again in a new work directory"
        )

    def delete_after(self, step: int) -> None:
        """Delete every step later than `step`: needed before a rewound run saves again."""
        for later in [s for s in self.steps() if s > step]:
            self._manager.delete(later)

    def wait(self) -> None:
        """Return when all saves are on disk. Raises OSError when one could not be written."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise _not_written(self.directory, error) from error

    def close(self) -> None:
        """Wait for all saves and end the threads. Raises OSError as `wait` does."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _restore(
        self, step: int, wanted: dict[str, Any], partial: bool
    ) -> tuple[list[jax.Array], dict[str, Any]]:
        """The leaves in the order of `wanted`, and the metadata; raises Damaged, ValueError."""
        path = self.directory / str(step)
        manifest = _agreed(lambda: manifests.read(path))
        where = f"checkpoint {step} in {self.directory}"
        manifests.check_fits(manifest["leaves"], wanted, where, partial)
        target = {name: _with_sharding(x) for name, x in wanted.items()}
        stored = {name: x for name, x in target.items() if x.size}
        args = ocp.args.PyTreeRestore(
            stored,
            restore_args=ocp.checkpoint_utils.construct_restore_args(stored),
            partial_restore=True,
        )
        found = _agreed(
            lambda: self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]
        )
        for name in target.keys() - stored.keys():
            x = target[name]
            found[name] = jnp.zeros(x.shape, x.dtype, device=x.sharding)
        # Orbax reads flipped bits without a word, and missing chunks as zeros.
        for name, value in manifests.digests({name: found[name] for name in wanted}).items():
            if value != manifest["leaves"][name]["digest"]:
                raise Damaged(f"{name} is not what was saved (digest {value})")
        return [found[name] for name in wanted], manifest["metadata"]

    def _set_aside(self, steps: list[int]) -> None:
        if self._read_only:
            return
        if jax.process_index() == 0:
            for step in steps:
                path = self.directory / str(step)
                names = (path.with_name(f"{step}.damaged{i or ''}") for i in range(1000))
                path.rename(next(name for name in names if not name.exists()))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints set aside")
        self._manager.reload()


def read_metadata(directory: str | Path, step: int | None = None) -> dict[str, Any]:
    """The metadata of one finished checkpoint, by default the newest that can be read.

    Reads one JSON file, no arrays. Raises FileNotFoundError when there is none, ValueError when
    the file is damaged.
    """
    directory = Path(directory)
    steps = _steps(directory) if step is None else [s for s in _steps(directory) if s == step]
    what, there = "" if step is None else f" of step {step}", ", ".join(map(str, _steps(directory)))
    problem: Exception = FileNotFoundError(
        f"no checkpoint{what} in {directory} (there: {there or 'none'})"
    )
    for number in reversed(steps):
        try:
            return manifests.read(directory / str(number))["metadata"]
        except Damaged as error:
            problem = ValueError(f"checkpoint {number} in {directory} is damaged: {error}")
    raise problem


def _agreed(read: Callable[[], Any]) -> Any:
    """`read()`; Damaged, in every process, when it fails in one."""
    problem: Exception | None = None
    try:
        value = read()
    except Exception as error:  # whatever a damaged file makes the readers raise
        problem = error
    failed = problem is not None
    if jax.process_count() > 1:
        failed = bool(np.any(multihost_utils.process_allgather(np.asarray(failed))))
    if not failed:
        return value
    if problem is None:
        raise Damaged("another process could not read it")
    raise Damaged(manifests.one_line(problem)) from problem


def _steps(directory: Path, committed: bool = True) -> list[int]:
    """The steps on disk, oldest first: the finished ones, or those that never were."""
    if not directory.is_dir():
        return []
    paths = [p for p in directory.iterdir() if p.name.isdecimal() and p.is_dir()]
    return sorted(int(p.name) for p in paths if (p / _COMMIT).exists() == committed)


def _with_sharding(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _not_written(directory: Path, error: Exception) -> OSError:
    return OSError(f"a checkpoint could not be written to {directory}: {manifests.one_line(error)}")
