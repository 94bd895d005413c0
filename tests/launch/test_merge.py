"""A run that starts from another's weights, and the plain run that merging it leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from launch import merge
from launch.run import config as configs
from launch.run import restore
from launch.run.build import Run, build
from launch.run.checkpoint import Checkpoints
from launch.run.state import initial_state
from nn.learning import tune
from tests.launch.runs import TINY_GPT


def make(workdir: Path, *overrides: str) -> Run:
    """A run on two devices whose work directory holds its config."""
    sizes = [f"{name}={value}" for name, value in TINY_GPT.items()]
    config = configs.load(
        "experiments/bytes_gpt.py", [*sizes, "mesh.tensor=2", "rule.ema_decay=0.9", *overrides]
    )
    workdir.mkdir()
    (workdir / "config.json").write_text(configs.to_json(config))
    return build(config, jax.devices()[:2])


def save(workdir: Path, state: Any, step: int) -> None:
    checkpoints = Checkpoints(workdir / "checkpoints")
    checkpoints.save(step, state, {"data": {"name": "bytes"}})
    checkpoints.close()


def same(a: Any, b: Any) -> bool:
    return jax.tree.all(jax.tree.map(lambda x, y: bool(np.array_equal(x, y)), a, b))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    """Parameters of a base, the state that starts from them with B filled, and its directory."""
    folder = tmp_path_factory.mktemp("runs")
    base = make(folder / "base", "seed=5")
    first = initial_state(base.rule, 5)
    save(folder / "base", first, 3)
    run = make(folder / "lora", f"tune.base={folder / 'base'}", "tune.lora_rank=2")
    state = restore.start_of(run)
    own, factors = tune.without_factors(state.params)
    assert same(own, first.params)
    assert same(state.average, run.rule.task.tune.split(state.params)[0])
    factors = jax.tree.map(lambda x: x + 0.125, factors)
    params = tune.join(own, factors)
    average, _ = run.rule.task.tune.split(params)
    save(folder / "lora", state.replace(params=params, average=average, step=state.step + 7), 7)
    return first.params, params, folder


def test_a_merged_run_is_one_of_the_plain_model(tuned: tuple[Any, Any, Path]) -> None:
    base, params, folder = tuned
    arguments = [f"--workdir={folder / 'lora'}", f"--to={folder / 'merged'}"]
    assert merge.main(arguments) == 0
    run = restore.run_of(str(folder / "merged"))
    state, metadata = restore.state_of(run, str(folder / "merged"))
    assert run.rule.task.tune.everything
    assert run.config.tune == configs.defaults().tune
    assert metadata["config"]["tune"]["lora_rank"] == 0
    assert int(state.step) == 7
    assert metadata["data"] == {"name": "bytes"}
    assert not same(state.params, base)
    want = tune.merge(jax.device_get(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.params, want)
    assert same(state.params, state.average)
    with pytest.raises(SystemExit):
        merge.main(arguments)


def test_what_cannot_be_merged_or_started_from_is_refused(
    tuned: tuple[Any, Any, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tuned[2]
    with pytest.raises(SystemExit):
        merge.main([f"--workdir={folder / 'base'}", f"--to={tmp_path / 'x'}"])
    assert "no factors to merge" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    with pytest.raises(FileNotFoundError, match="no checkpoint of a run there"):
        restore.start_of(make(tmp_path / "a", f"tune.base={tmp_path / 'nowhere'}"))
    with pytest.raises(ValueError, match=r"tune\.base=.*is of another model"):
        restore.start_of(make(tmp_path / "b", f"tune.base={folder / 'base'}", "model.mlp_dim=32"))
