"""A trained model from the work directory of a run, onto any mesh."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from launch.run import config as configs
from launch.run.build import Run, build
from launch.run.checkpoint import Checkpoints
from launch.run.pretrained import first_state
from launch.run.state import abstract_state, initial_state
from nn.learning import tune


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


def check_base(config: FrozenConfigDict) -> None:
    """FileNotFoundError where `tune.base` has saved nothing; ValueError for two beginnings."""
    base, published = config.tune.base, config.model.pretrained
    if base and published:
        raise ValueError(
            f"tune.base={base} and model.pretrained={published} are both weights to start from; "
            "nearest: tune.base=''"
        )
    if base and not any(Path(base).glob("checkpoints/*/commit_success.txt")):
        raise FileNotFoundError(
            f"tune.base={base}: no checkpoint of a run there; name the --workdir of one"
        )


def start_of(run: Run) -> Any:
    """The first state of a run: parameters by chance, those of the published directory
    `model.pretrained`, or those that the run `tune.base` ends with.

    Raises:
      FileNotFoundError: see `check_base`.
      ValueError: it is a run of another model; what `first_state` raises.
    """
    base = run.config.tune.base
    if not base:
        return first_state(run)
    check_base(run.config)
    own, _ = tune.without_factors(abstract_state(run.rule).params)
    checkpoints = Checkpoints(Path(base) / "checkpoints", keep=None)
    try:
        saved, _ = checkpoints.restore({"params": own}, partial=True)
    except ValueError as error:
        raise ValueError(f"tune.base={base}: {error}") from error
    finally:
        checkpoints.close()
    state = initial_state(run.rule, run.config.seed)
    params = tune.join(saved["params"], tune.without_factors(state.params)[1])
    if state.average is not None:
        state = state.replace(average=jax.tree.map(jnp.copy, run.rule.task.tune.split(params)[0]))
    return state.replace(params=params)


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
