"""Cells: resolved, refused and identified before anything runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launch.run import config as configs
from launch.sweeping import cells

RATE = "optimizer.learning_rate"


def test_cells_are_resolved_in_order_on_top_of_the_base() -> None:
    values = [{RATE: 0.1, "model.features": [8]}, {RATE: 1, "train.steps": 70}]
    first, second = cells.resolve_cells("digits_mlp", ["train.steps=50", "seed=3"], values)
    assert first.config.train.steps == 50 and second.config.train.steps == 70
    assert first.config.seed == second.config.seed == 3
    assert first.config.model.features == (8,)
    assert first.overrides == {RATE: 0.1, "model.features": (8,)}
    assert second.overrides == {RATE: 1.0, "train.steps": 70}


def test_what_is_wrong_with_a_cell_is_said_with_its_number() -> None:
    with pytest.raises(ValueError, match=r"cell 2 of the sweep: .*learning_rat.*nearest: '" + RATE):
        cells.resolve_cells("digits_mlp", [], [{RATE: 0.1}, {"optimizer.learning_rat": 0.1}])
    with pytest.raises(ValueError, match=r"cell 1 of the sweep: .*wrong type"):
        cells.resolve_cells("digits_mlp", [], [{"train.steps": 0.5}])
    with pytest.raises(ValueError, match="the sweep has no cells"):
        cells.resolve_cells("digits_mlp", [], [])


def test_how_a_run_is_carried_out_is_no_part_of_what_it_is() -> None:
    def identity(*overrides: str) -> str:
        return cells.identity(configs.load("digits_mlp", overrides))

    base = identity()
    assert re.fullmatch("[0-9a-f]{12}", base)
    same = ["mesh.fsdp=2", "mesh.data=1", "metrics.tensorboard=false", "train.checkpoint_every=1"]
    same += ["train.log_every=3", "data.dir=/elsewhere", "data.prefetch=5", "sample.length=4"]
    same += ["train.time_limit=3", "train.hang_timeout=9", "train.keep_checkpoints=9"]
    assert {identity(override) for override in same} == {base}
    other = ["seed=1", f"{RATE}=0.1", "train.steps=90", "train.eval_every=9", "data.batch_size=32"]
    other += ["mesh.reduce_dtype=bfloat16", "precision.policy=float32", "data.eval_batches=1"]
    assert len({base, *map(identity, other)}) == 1 + len(other)


def test_equal_cells_are_one_and_those_that_differ_in_execution_only_are_refused() -> None:
    assert len(cells.resolve_cells("digits_mlp", [], [{RATE: 3e-3}, {RATE: 0.1}, {}])) == 2
    with pytest.raises(ValueError, match=r"cell 2 .* in mesh.fsdp only"):
        cells.resolve_cells("digits_mlp", [], [{}, {"mesh.fsdp": 2}])


def test_flags_span_a_grid() -> None:
    words = ["--config=x", f"--sweep.{RATE}=1e-3,1e-2", "--sweep.model.features=32,32;64"]
    found, rest = cells.of_flags([*words, "--slots=2"])
    assert rest == ["--config=x", "--slots=2"]
    resolved = cells.resolve_cells("digits_mlp", [], found)
    assert [cell.overrides["model.features"] for cell in resolved] == [(32, 32), (64,)] * 2
    assert [cell.overrides[RATE] for cell in resolved] == [1e-3, 1e-3, 1e-2, 1e-2]
    assert cells.of_flags(["--slots=2"]) == ([], ["--slots=2"])
    with pytest.raises(ValueError, match="must have the form"):
        cells.of_flags(["--sweep.seed=1,,2"])
    with pytest.raises(ValueError, match="given twice"):
        cells.of_flags(["--sweep.seed=1,2", "--sweep.seed=3"])


def test_a_sweep_that_yields_no_cells_says_where(tmp_path: Path) -> None:
    file = tmp_path / "odd.py"
    source = "from experiments import base\nget_config = base.get_config\ndef sweep():\n    "
    file.write_text(source + 'return ["seed"]\n')
    with pytest.raises(ValueError, match=r"odd.py: sweep\(\) yields 'seed': a cell maps keys"):
        cells.of_experiment(str(file))
    file.write_text(source + 'return {}["seed"]\n')
    with pytest.raises(ValueError, match=r"odd.py: sweep\(\): 'seed'"):
        cells.of_experiment(str(file))
    assert cells.of_experiment("digits_vit") == []


def test_what_differs_between_cells() -> None:
    found = [{"a": 1, "b": 2}, {"a": 1, "b": 3}, {"a": 1, "b": 2, "c": None}]
    assert cells.differing(found) == ["b", "c"]
    assert cells.label({"model.features": (8, 8), RATE: 0.1}) == "features=8,8 learning_rate=0.1"
