"""Loading a config: precedence, sections, refusals, JSON, digest."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ml_collections import FrozenConfigDict

from launch.run import config, keys

Write = Callable[..., str]


def test_a_key_takes_the_last_value_that_is_set(toy: str) -> None:
    got = config.load(toy)
    assert isinstance(got, FrozenConfigDict)
    assert got.model.kind == "plain"  # default of the file
    assert got.model.width == 4  # the experiment, by the default of its argument
    assert config.load(f"{toy}:large").model.width == 16
    assert config.load(toy, ["model.width=6", "model.width=10"]).model.width == 10
    assert got.train.steps == 50
    assert got.train.log_every == 20  # default of base.py


def test_every_field_of_every_part_is_there(toy: str) -> None:
    got = config.load(toy)
    assert got.model.features == (4, 4)
    assert got.model.limit is None
    assert got.objective.smoothing == 0.0
    assert got.rule.accumulate == 1
    assert got.data.noise == 0.1
    assert got.data.batch_size == 32


def test_section_is_the_typed_config_of_its_file(toy: str) -> None:
    got = config.section(config.load(toy, ["model.features=3,5,7"]), "model")
    assert dataclasses.is_dataclass(got)
    assert type(got).__module__ == "nn.families.toy_net"
    assert got.features == (3, 5, 7)
    assert got.width == 4
    with pytest.raises(ValueError, match="unknown section of a config 'modl'.*nearest: 'model'"):
        config.section(config.load(toy), "modl")


def test_preset_is_below_the_experiment_and_above_the_defaults(
    toys: None, write_experiment: Write
) -> None:
    spec = write_experiment('config.model.preset = "toy-large"')
    got = config.load(spec)
    assert (got.model.kind, got.model.width) == ("grand", 4)
    assert config.load(spec, ["model.kind=odd"]).model.kind == "odd"


def test_another_preset_or_family_drops_what_was_set_for_the_old_one(
    toys: None, write_experiment: Write
) -> None:
    spec = write_experiment('config.model.preset = "toy-large"', "config.data.noise = 0.9")
    small = config.load(spec, ["model.preset=toy-small"])
    assert (small.model.width, small.model.kind) == (2, "plain")
    assert small.data.noise == 0.9  # another section
    assert config.load(spec, ["model.preset=toy-large"]).model.width == 4  # no other: all stays
    other = config.load(spec, ["model.family=toy_other"])
    none = {"preset": None, "pretrained": ""}
    assert other.model.to_dict() == {"family": "toy_other", **none, "depth": 3}
    assert config.load(spec, ["model.preset=none"]).model.width == 8


def test_base_keys_of_a_section_survive_another_file(toys: None, write_experiment: Write) -> None:
    spec = write_experiment('config.data.name = "toy_set"', "config.data.batch_size = 7")
    assert config.load(spec, ["data.name=toy_set"]).data.batch_size == 7


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("optimizer.learning_rate=3", 3.0),
        ("optimizer.learning_rate=1e-4", 1e-4),
        ("train.steps=1_000", 1000),
        ("metrics.tensorboard=False", False),
        ("metrics.tensorboard=1", True),
        ("model.preset=toy-small", "toy-small"),
        ("model.preset=None", None),
        ("model.features=64,64", (64, 64)),
        ("model.features=(64,)", (64,)),
        ("model.features=", ()),
        ("model.limit=5", 5),
        ("model.limit=none", None),
        ("data.seed=3", 3),
        ("data.dir=/a dir/b=c", "/a dir/b=c"),
        ("optimizer.decay_steps=9", 9),
        ("sample.prompt=def f(a=1, b):", "def f(a=1, b):"),
        ("optimizer.decay_mask=none", "none"),
    ],
)
def test_overrides_read_as_the_type_of_the_key(toy: str, text: str, value: Any) -> None:
    name = text.partition("=")[0]
    got = keys.flatten(config.load(toy, [text]))[name]
    assert got == value
    assert type(got) is type(value)


BAD = {
    "optimizer.learning_rat=1": "unknown config key.*nearest: 'optimizer.learning_rate'",
    "train.learning_rate=1": "unknown config key.*nearest: 'optimizer.learning_rate'",
    "optimiser.name=adam": "unknown config key 'optimiser.name': the sections are.*nearest",
    "sed=1": "unknown config key 'sed'.*nearest: 'seed'",
    "model.widht=4": "section 'model' has family, .*width.*nearest: 'model.width'",
    "model=4": "'model' is a section, not a key: set one of model.family",
    "seed.x=4": "unknown config key 'seed.x'",
    "model.family=toynet": "unknown model.family 'toynet'.*nearest: 'toy_net'",
    "model.family=toy_helper": "unknown model.family 'toy_helper'",
    "model.preset=toy-smal": "unknown model.preset 'toy-smal'.*nearest: 'toy-small'",
    "data.name=toy_sets": "unknown data.name 'toy_sets'.*nearest: 'toy_set'",
    "objective.name=toy_gaol": "unknown objective.name 'toy_gaol'.*nearest: 'toy_goal'",
    "rule.name=toy_role": "unknown rule.name 'toy_role'.*nearest: 'toy_rule'",
    "train.steps=1.5": "train.steps='1.5' is of the wrong type: it must be a whole number",
    "train.steps=none": "train.steps='none' is of the wrong type",
    "optimizer.learning_rate=fast": "'fast' is of the wrong type: it must be a number",
    "metrics.wandb=yes": "metrics.wandb='yes' is of the wrong type: it must be true or false",
    "model.features=4,x": "model.features='4,x' is of the wrong type: it must be ints, as in 8,8",
    "data.seed=x": "it must be a whole number, such as 64, or none",
    "optimizer.learning_rate=nan": "optimizer.learning_rate=nan: must be finite",
    "optimizer.learning_rate=-inf": "optimizer.learning_rate=-inf: must be finite",
    "optimizer.learning_rate=-0.1": "optimizer.learning_rate=-0.1: must be above 0.*default: 0.001",
    "model.rate=nan": "model.rate=nan: must be finite",
    "model.width=3": "model.width=3: must be even; nearest: 4",
    "optimizer.name=adamx": "unknown optimizer.name 'adamx'.*nearest: 'adam",
    "precision.policy=float8": "'float8' is not available: choose from auto, float32",
    "model.width": "must have the form --config.section.key=value",
}


@pytest.mark.parametrize("override", BAD)
def test_bad_overrides_are_one_clear_line(toy: str, override: str) -> None:
    with pytest.raises(ValueError, match=BAD[override]) as error:
        config.load(toy, [override])
    assert "\n" not in str(error.value)


BAD_EXPERIMENTS = {
    "config.train.stepz = 3": "toy.py: unknown config key 'train.stepz'.*nearest: 'train.steps'",
    "config.model.kind = 3": "toy.py: model.kind=3 is of the wrong type",
    "config.model.limit = True": "toy.py: model.limit=True is of the wrong type",
    "config.model.features = (1, 'a')": "toy.py: model.features='a' is of the wrong type",
    "config.train.steps = 1.5": "toy.py: .*steps.*cannot be cast",
    "config.trian.steps = 1": "toy.py: .*trian",
    "config.optimizer.learning_rate = -1.0": "must be above 0",
    "config = 3": "returned int, not a ConfigDict",
}


@pytest.mark.parametrize("line", BAD_EXPERIMENTS)
def test_bad_experiments_are_one_clear_line(toys: None, write_experiment: Write, line: str) -> None:
    with pytest.raises(ValueError, match=BAD_EXPERIMENTS[line]) as error:
        config.load(write_experiment(line))
    assert "\n" not in str(error.value)


def test_arguments_of_an_experiment(toy: str, write_experiment: Write) -> None:
    with pytest.raises(ValueError, match=r"argument of toy.py 'larg'.*nearest: 'large'"):
        config.load(f"{toy}:larg")
    plain = "from experiments import base\n\ndef get_config():\n    return base.get_config()\n"
    spec = write_experiment(source=plain, name="plain.py")
    with pytest.raises(ValueError, match=r"plain.py takes no argument"):
        config.load(f"{spec}:large")


def test_whole_numbers_and_lists_of_an_experiment_are_converted(
    toys: None, write_experiment: Write
) -> None:
    got = config.load(write_experiment("config.model.rate = 1", "config.model.features = [2, 3]"))
    assert (got.model.rate, type(got.model.rate)) == (1.0, float)
    assert got.model.features == (2, 3)


def test_json_round_trip(toy: str) -> None:
    got = config.load(toy, ["model.features=", "optimizer.learning_rate=1e-5", "sample.prompt=é\n"])
    text = config.to_json(got)
    assert config.from_json(text) == got
    assert config.to_json(config.from_json(text)) == text
    assert config.digest(config.from_json(text)) == config.digest(got)


def test_json_of_another_version(toy: str) -> None:
    data = json.loads(config.to_json(config.load(toy)))
    del data["train"]["log_every"]
    assert config.from_json(json.dumps(data)).train.log_every == 20
    data["train"]["log_evry"] = 1
    with pytest.raises(ValueError, match=r"unknown config key 'train.log_evry'"):
        config.from_json(json.dumps(data))
    with pytest.raises(ValueError, match="not a config in JSON"):
        config.from_json("{")
    with pytest.raises(ValueError, match="not a config in JSON"):
        config.from_json("[]")


def test_digest_changes_with_every_value_and_not_with_spelling(toy: str) -> None:
    base = config.digest(config.load(toy))
    assert len(base) == 64
    assert config.digest(config.load(toy, ["optimizer.learning_rate=0.0010"])) == base
    for change in ("seed=1", "model.features=4", "sample.prompt=x", "data.seed=0"):
        assert config.digest(config.load(toy, [change])) != base


def test_diff_names_what_differs(toy: str) -> None:
    base = config.load(toy)
    assert config.diff(base, base) == {}
    other = config.load(toy, ["seed=3", "model.family=toy_other"])
    changes = config.diff(other, base)
    assert changes["seed"] == (0, 3)
    assert changes["model.width"] == (4, None)
    assert changes["model.depth"] == (None, 3)
    assert "train.steps" not in changes


def test_overrides_of_values_give_the_same_values(toy: str) -> None:
    values = {
        "model.features": (1, 2),
        "model.limit": None,
        "metrics.wandb": True,
        "optimizer.learning_rate": math.pi,
        "sample.prompt": "a=b, c",
    }
    flat = keys.flatten(config.load(toy, config.overrides_of(values)))
    assert {name: flat[name] for name in values} == values


def test_split_arguments() -> None:
    argv = ["--config=x.py", "--workdir", "w", "--config.a.b=1=2", "--config.c", "-1", "--cfg=3"]
    spec, overrides, rest = config.split_arguments(argv)
    assert (spec, overrides) == ("x.py", ["a.b=1=2", "c=-1"])
    assert rest == ["--workdir", "w", "--cfg=3"]
    assert config.split_arguments([]) == (None, [], [])
    for wrong in (["--config"], ["--config.a", "--config.b=1"]):
        with pytest.raises(ValueError, match="needs a value"):
            config.split_arguments(wrong)


def test_experiments_are_found_from_anywhere(
    toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert config.load("toy.py") == config.load(toy)
    assert config.load("./toy.py:large").model.width == 16
