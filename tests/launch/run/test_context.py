"""Runs whose positions are split over devices: what is chosen, refused, trained and generated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from launch import train
from launch.run import config, decode, errors
from launch.run.build import Run, build
from launch.run.decode import Sampling
from launch.run.state import initial_state
from tests.launch import runs
from tests.marks import but_slow


def built(experiment: str = "bytes_gpt", devices: int = 8, **overrides: Any) -> Run:
    """A run on the first devices."""
    flags = runs.arguments(Path("unused"), experiment, **overrides)[2:]
    values = dict(flag.removeprefix("--config.").split("=", 1) for flag in flags)
    loaded = config.load(f"experiments/{experiment}.py", config.overrides_of(values))
    return build(loaded, jax.devices()[:devices])


def test_the_choice_goes_into_the_rules_and_the_log() -> None:
    run = built(mesh__context=4)
    assert (run.rule.task.rules.attention, run.rule.task.rules.layout) == ("ulysses", "contiguous")
    assert run.notes == ("attention over mesh.context=4: ulysses (Ulysses sends 2.0 times less)",)
    run = built(mesh__context=2)
    assert (run.rule.task.rules.attention, run.rule.task.rules.layout) == ("ring", "zigzag")
    assert built().notes == ()
    images = built("digits_resnet", mesh__context=2)
    assert images.rule.task.rules.layout == "contiguous"
    assert "in order" in images.notes[0]


@pytest.mark.parametrize(
    ("experiment", "overrides", "words"),
    [
        ("digits_mlp", {"mesh.context": 2}, "mesh.context=2 has nothing to split"),
        ("digits_resnet", {"mesh.context": 2, "mesh.attention": "ring"}, "nearest: .*'ulysses'"),
        ("bytes_gpt", {"mesh.context": 8, "mesh.attention": "ring", "data.sequence_length": 24},
         "nearest length: 32"),
        ("bytes_gpt", {"mesh.context": 4, "mesh.tensor": 2, "data.sequence_length": 36},
         "divisible by mesh.tensor=2 x mesh.context=4"),
        ("bytes_gpt", {"mesh.context": 4, "mesh.tensor": 2, "model.num_heads": 4,
                       "model.num_kv_heads": 4, "mesh.attention": "ulysses"},
         "nearest: mesh.context=2"),
    ],
)  # fmt: skip
def test_what_cannot_be_split_is_refused(
    experiment: str, overrides: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        built(experiment, **overrides)


@pytest.mark.parametrize("attention", but_slow(("ring", "ulysses", "gather"), "ulysses", "gather"))
def test_losses_are_those_of_other_meshes(
    attention: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = {"train__steps": 3, "train__checkpoint_every": 0, "sample__length": 4}
    whole, split = tmp_path / "whole", tmp_path / "split"
    assert train.main(runs.arguments(whole, **short)) == errors.DONE
    sizes = {"mesh__context": 4, "mesh__attention": attention}
    assert train.main(runs.arguments(split, **short, **sizes)) == errors.DONE
    assert f"mesh.context=4: {attention} (as configured)" in capsys.readouterr().out
    for name in ("train", "validation"):
        a, b = runs.curve(split, split=name), runs.curve(whole, split=name)
        assert a.keys() == b.keys()
        assert runs.relative(a, b) < 1e-5


def test_generation_does_not_depend_on_context() -> None:
    made = []
    for context in (1, 4):
        run = built(devices=2 * context, mesh__context=context)
        task = run.rule.task
        params = initial_state(run.rule, 0).params
        specs = task.variable_specs()["params"]
        how = Sampling(temperature=0)
        generate = decode.compiled(task.model, task.mesh, task.rules, specs, 6, how)
        prompts = np.arange(12, dtype=np.int32).reshape(4, 3)
        seed = jax.random.key_data(jax.random.key(0))
        rows = np.arange(4, dtype=np.int32)
        made.append(generate(params, prompts, np.full(4, 3, np.int32), seed, rows)[0])
    np.testing.assert_array_equal(made[0], made[1])
