"""The section `scale`: what a resolved config says, what a run is made of, what is refused."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import pytest

from launch.run import config as configs
from launch.run import published, scale
from launch.run.build import build
from launch.run.state import initial_state
from launch.run.step import to_mesh
from nn.families import transformer
from nn.learning.parametrisation import FACTORS

TINY = {
    "model.family": "transformer",
    "model.vocab_size": 32,
    "model.context_length": 16,
    "model.dim": 32,
    "model.num_layers": 2,
    "model.num_heads": 4,
    "data.sequence_length": 16,
    "data.batch_size": 8,
    "optimizer.learning_rate": 0.01,
}
WIDER = {"scale.rule": "completep", "scale.base": "dim=16,num_layers=1"}


def load(**sections: Any) -> Any:
    values = {name.replace("__", "."): value for name, value in sections.items()}
    return configs.load(None, configs.overrides_of(TINY | values))


def factors(config: Any) -> dict[str, float]:
    return {name: config.model[name] for name in FACTORS if name in config.model}


def test_a_resolved_config_says_what_is_computed() -> None:
    config = configs.load(None, configs.overrides_of(TINY | WIDER))
    # Heads of 8 beside 4: 1 / 8 in place of 1 / sqrt(8), 1 / 4 is what the base has as 1 / sqrt(4).
    expected = {"attention_factor": 0.5**0.5, "branch_factor": 0.5, "logit_factor": 0.5}
    assert factors(config) == pytest.approx(expected)
    assert configs.from_json(configs.to_json(config)) == config
    assert configs.override(config, []) == config
    wider = configs.override(config, ["model.dim=64", "scale.rule=mup", "scale.base=dim=16"])
    assert factors(wider) == pytest.approx(
        {"attention_factor": 0.5, "branch_factor": 1.0, "logit_factor": 0.25}
    )
    assert set(factors(configs.override(config, ["scale.rule=standard"])).values()) == {1.0}
    other = configs.override(config, ["model.family=neural_lm", "scale.base=hidden_dim=64"])
    assert factors(other) == {}
    assert factors(load(model__branch_factor=0.3))["branch_factor"] == 0.3


def test_the_base_is_the_model_but_for_its_fields() -> None:
    config = load(**{n.replace(".", "__"): v for n, v in WIDER.items()})
    model = configs.section(config, "model")
    base = scale.base_of(config, model)
    assert (base.dim, base.num_layers, base.num_heads) == (16, 1, 4)
    assert (base.logit_factor, model.logit_factor) == (1.0, 0.5)
    assert scale.settings("a=1, b=2,3 ,4,c=x") == {"a": "1", "b": "2,3,4", "c": "x"}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"scale__base": ""}, r"scale.rule='completep' needs scale.base"),
    ({"scale__base": "dims=16"}, r"'model.dims'.*nearest: 'model.dim'"),
    ({"scale__base": "dim=x"}, r"scale.base: .*dim"),
    ({"scale__base": "16"}, r"scale.base: '16' is not of the form field=value"),
    ({"scale__base": "dim=18"}, r"scale.base='dim=18': model.num_heads=4 does not divide"),
    ({"scale__rule": "mupp"}, r"scale.rule.*nearest: 'mup'"),
    ({"optimizer__name": "lamb"}, r"optimizer.name='lamb'.*nearest: optimizer.name='adamw'"),
    ({"optimizer__name": "adam"}, r"optimizer.name='adam' divides decay"),
    ({"model__branch_factor": 0.3}, r"model.branch_factor=0.3 is set by scale.rule='completep'"),
    ({"model__norm_order": "post"}, r"norm is after their sum"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED)
def test_what_cannot_be_is_refused_when_it_is_read(values: dict[str, Any], message: str) -> None:
    wider = {name.replace(".", "__"): value for name, value in WIDER.items()}
    with pytest.raises(ValueError, match=message):
        load(**(wider | values))


def test_weights_that_are_published_are_not_scaled() -> None:
    config = transformer.Config(branch_factor=0.5)
    with pytest.raises(ValueError, match=r"no published format .* model.branch_factor=0.5"):
        published.format_for("transformer", config, {})


@functools.cache
def after(config: Any, devices: int = 1, steps: int = 2) -> tuple[Any, Any, float]:
    """First and last state of a run, and its last loss."""
    run = build(config, jax.devices()[:devices])
    first = state = initial_state(run.rule, 0)
    rng, update = np.random.default_rng(0), jax.jit(run.rule.update)
    for _ in range(steps):
        tokens = rng.integers(0, 32, (8, 17)).astype(np.int32)
        rows = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}
        batch = to_mesh(run.rule, rows | {"mask": np.ones((8, 16), np.float32)})
        state, metrics = update(state, batch)
    return jax.device_get(first), jax.device_get(state), float(metrics["loss"])


def test_a_model_that_is_its_own_base_is_bit_for_bit_the_standard_one() -> None:
    own = {"scale__rule": "completep", "scale__base": "dim=32,num_layers=2"}
    one, other = after(load()), after(load(**own))
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_wider_one_is_the_same_on_every_mesh() -> None:
    config = configs.load(None, configs.overrides_of(TINY | WIDER))
    sizes = ["mesh.data=1", "mesh.fsdp=2", "mesh.tensor=2"]
    one, split = after(config), after(configs.override(config, sizes), devices=4)
    jax.tree.map(np.testing.assert_array_equal, one[0].params, split[0].params)
    assert split[2] == pytest.approx(one[2], rel=1e-5)
    standard = after(load())
    table = "embed", "embedding"
    assert (standard[0].params[table[0]][table[1]] == one[0].params[table[0]][table[1]]).all()
    kernels = [x[0].params["blocks"]["mlp"]["up"]["kernel"] for x in (one, standard)]
    np.testing.assert_allclose(kernels[0], kernels[1] * 0.5**0.5, rtol=1e-6)
    assert abs(one[2] - standard[2]) > 1e-3
