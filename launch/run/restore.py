"""A trained model from the work directory of a run, onto any mesh."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import FrozenConfigDict

from launch.run import config as configs
from launch.run.build import Run, build
from launch.run.checkpoint import Checkpoints
from launch.run.state import abstract_state


def run_of(workdir: str, overrides: Sequence[str] = ()) -> Run:
    """The run whose config lies in `workdir`, with `overrides`, on the devices there are.

    The mesh is that of the config where it fits the devices and all-data otherwise, since a
    trained model may be used on other devices than it was trained on.

    Raises:
      FileNotFoundError: no run there.
    """
    config = config_of(workdir, overrides)
    try:
        return build(config)
    except ValueError:
        if any(text.startswith("mesh.") for text in overrides):
            raise
        axes = ("pipe", "fsdp", "expert", "context", "tensor")
        single = [f"mesh.{axis}=1" for axis in axes]
        return build(configs.override(config, [*single, "mesh.data=-1", *overrides]))


def config_of(workdir: str, overrides: Sequence[str] = ()) -> FrozenConfigDict:
    """The config that lies in `workdir`, with `overrides`; raises FileNotFoundError for none."""
    path = Path(workdir) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"--workdir={workdir}: no run there (config.json is missing); "
            f"train one with python -m launch.train --config=... --workdir={workdir}"
        )
    return configs.override(configs.from_json(path.read_text("utf-8")), overrides)


def state_of(run: Run, workdir: str, step: int | None = None) -> tuple[Any, dict[str, Any]]:
    """The state saved in `workdir`, and its metadata.

    Raises:
      FileNotFoundError: nothing was saved there.
      ValueError: what was saved belongs to another model.
    """
    checkpoints = Checkpoints(Path(workdir) / "checkpoints", keep=None)
    try:
        if checkpoints.latest_step() is None:
            raise FileNotFoundError(f"--workdir={workdir}: the run has saved no checkpoint yet")
        return checkpoints.restore(abstract_state(run.rule), step)
    finally:
        checkpoints.close()
