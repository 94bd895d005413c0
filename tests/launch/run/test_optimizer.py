"""Optimizers against Optax's own and against formulas, stacks of layers, masks, schedules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict
from optax import contrib

from experiments import base
from launch.run import optimizer
from nn.parallel.weight import Named, unbox

LAYERS = 2


def options(**changes: Any) -> ConfigDict:
    section = base.get_config().optimizer
    section.update({"schedule": "constant", "clip_norm": 0.0, **changes})
    return section


def block(seed: int) -> dict[str, Any]:
    """One layer, whose weights have the names and forms of a transformer's."""
    draw = np.random.default_rng(seed).standard_normal
    tree = {
        "attention": {
            "query_kernel": draw((8, 2, 3)),
            "out_kernel": draw((2, 3, 8)),
            "query_bias": draw((2, 3)),
        },
        "mlp": {"kernel": 3 * draw((8, 16)), "bias": np.arange(16.0)},
        "norm": {"scale": draw(8)},
    }
    return jax.tree.map(np.float32, tree)


NAMES = {
    "attention": {
        "query_kernel": ("embed", "heads", "head_dim"),
        "out_kernel": ("heads", "head_dim", "embed"),
        "query_bias": ("heads", "head_dim"),
    },
    "mlp": {"kernel": ("embed", "mlp"), "bias": ("mlp",)},
    "norm": {"scale": (None,)},
}
TABLE = np.linspace(-2, 1, 80, dtype=np.float32)
OUTER = {
    "embed": {"embedding": Named(TABLE.reshape(10, 8), ("vocab", "embed"))},
    "head": {"kernel": Named(TABLE.reshape(8, 10), ("embed", "vocab"))},
}


def named(tree: Any, front: tuple[str, ...] = ()) -> Any:
    return jax.tree.map(lambda x, n: Named(x, (*front, *n)), tree, NAMES)


def blocks(seed: int) -> list[Any]:
    return [block(seed + i) for i in range(LAYERS)]


def stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *x: np.stack(x), *trees)


Run = Callable[[Any, list[Any]], Any]


def runner(section: ConfigDict, params: Any) -> Run:
    return run_of(optimizer.make(section, 10, params)[0])


def run_of(transform: optax.GradientTransformation) -> Run:
    """(parameters, gradients) -> the parameters after one step per gradient."""

    def step(carry: Any, gradient: Any) -> Any:
        params, state = carry
        updates, state = transform.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def steps(params: Any, gradients: Any) -> Any:
        return jax.lax.scan(step, (params, transform.init(params)), gradients)[0][0]

    return lambda params, gradients: steps(params, stack(gradients))


def close(a: Any, b: Any, rtol: float = 1e-5) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-7), a, b)


RATE, DECAY = 0.01, 0.2
KERNELS = {
    "attention": {"query_kernel": True, "out_kernel": True, "query_bias": False},
    "mlp": {"kernel": True, "bias": False},
    "norm": {"scale": False},
}


def l2(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    return optax.chain(optax.add_decayed_weights(DECAY, KERNELS), transform)


# What the names of the config stand for, in Optax's own words.
REFERENCES = {
    "sgd": l2(optax.sgd(RATE)),
    "momentum": l2(optax.sgd(RATE, momentum=0.9)),
    "nesterov": l2(optax.sgd(RATE, momentum=0.9, nesterov=True)),
    "rmsprop": l2(optax.rmsprop(RATE, decay=0.95, eps=1e-8, eps_in_sqrt=False)),
    "adam": l2(optax.adam(RATE, b1=0.9, b2=0.95)),
    "adamw": optax.adamw(RATE, b1=0.9, b2=0.95, weight_decay=DECAY, mask=KERNELS),
    "lion": optax.lion(RATE, b1=0.9, b2=0.95, weight_decay=DECAY, mask=KERNELS),
    "lamb": optax.lamb(RATE, b1=0.9, b2=0.95, eps=1e-8, weight_decay=DECAY, mask=KERNELS),
    "adafactor": optax.chain(
        optax.adafactor(1.0),
        optax.scale(-1.0),
        optax.add_decayed_weights(DECAY, KERNELS),
        optax.scale_by_learning_rate(RATE),
    ),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_methods_are_those_of_optax(name: str) -> None:
    params, gradients = block(0), [block(i) for i in (1, 2, 3)]
    run = runner(options(name=name, learning_rate=RATE, weight_decay=DECAY), named(params))
    close(run(params, gradients), run_of(REFERENCES[name])(params, gradients))


def test_all_names_are_covered() -> None:
    assert REFERENCES.keys() | {"muon"} == set(optimizer.NAMES)


def test_momentum_by_hand() -> None:
    """velocity = 0.9 velocity + gradient + decay * weight; weight -= rate * velocity."""
    section = options(name="momentum", learning_rate=0.1, weight_decay=0.5, momentum=0.9)
    run = runner(section, {"kernel": jnp.zeros(())})
    weight, velocity = 2.0, 0.0
    for gradient in (1.0, -3.0):
        velocity = 0.9 * velocity + gradient + 0.5 * weight
        weight -= 0.1 * velocity
    result = run({"kernel": jnp.asarray(2.0)}, [{"kernel": g} for g in (1.0, -3.0)])
    np.testing.assert_allclose(result["kernel"], weight, rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lamb", "muon"])
def test_a_stack_of_layers_is_updated_layer_by_layer(name: str) -> None:
    section = options(name=name, learning_rate=RATE, weight_decay=DECAY)
    layers, gradients = blocks(0), [blocks(10), blocks(20)]
    one = runner(section, named(layers[0]))
    each = [one(p, [g[i] for g in gradients]) for i, p in enumerate(layers)]
    whole = runner(section, named(stack(layers), ("layers",)))
    close(whole(stack(layers), [stack(g) for g in gradients]), stack(each), rtol=1e-4)


def test_stacks_within_stacks_and_beside_others() -> None:
    """Experts within layers, another depth, and weights that are in no stack, all in one tree."""
    w = np.float32(np.random.default_rng(0).standard_normal((2, 3, 4, 5)))
    params = {
        "a": {"kernel": Named(w, ("layers", "expert", "embed", "mlp"))},
        "b": {"kernel": Named(w[0], ("layers", "embed", "mlp"))},
        "c": {"kernel": Named(w[0, 0], ("embed", "mlp"))},
    }
    gradients = jax.tree.map(np.cos, unbox(params))
    section = options(name="lamb", learning_rate=RATE)
    got = runner(section, params)(unbox(params), [gradients])
    alone = runner(section, params["c"])({"kernel": w[0, 0]}, [{"kernel": np.cos(w[0, 0])}])
    close(got["c"], alone)
    close(got["b"]["kernel"][0], alone["kernel"])
    close(got["a"]["kernel"][0, 0], alone["kernel"])


def test_muon_orthogonalises_hidden_matrices_only() -> None:
    params = {"blocks": named(stack(blocks(0)), ("layers",)), **OUTER}
    gradients = jax.tree.map(np.sin, unbox(params))
    section = options(name="muon", learning_rate=1.0, weight_decay=0.0)
    after = runner(section, params)(unbox(params), [gradients])
    moved = jax.tree.map(lambda a, b: a - np.asarray(b), unbox(params), after)
    # Newton-Schulz leaves singular values between about 0.7 and 1.2 (Jordan 2024).
    for layer in range(LAYERS):
        inner = moved["blocks"]
        for matrix in (
            inner["mlp"]["kernel"][layer],
            inner["attention"]["query_kernel"][layer].reshape(8, 6),
            inner["attention"]["out_kernel"][layer].reshape(6, 8),
        ):
            scale = 0.2 * max(matrix.shape) ** 0.5
            values = np.linalg.svd(matrix, compute_uv=False) / scale
            assert values.min() > 0.5
            assert values.max() < 1.4
    # The first step of Adam has size 1 everywhere.
    for leaf in (
        moved["embed"]["embedding"],
        moved["head"]["kernel"],
        moved["blocks"]["mlp"]["bias"],
        moved["blocks"]["norm"]["scale"],
    ):
        big = np.abs(leaf) > 0.5
        np.testing.assert_allclose(np.abs(leaf[big]), 1.0, rtol=1e-3)
        assert big.mean() > 0.9


@pytest.mark.parametrize(
    ("path", "names", "shape", "expected"),
    [
        ("mlp/kernel", ("embed", "mlp"), (2, 3), ((0,), (1,))),
        ("mlp/kernel", ("layers", "mlp", "embed"), (9, 3, 2), ((1,), (2,))),
        ("a/query_kernel", ("layers", "embed", "heads", "head_dim"), (9, 2, 3, 4), ((1,), (2, 3))),
        ("a/out_kernel", ("layers", "heads", "head_dim", "embed"), (9, 3, 4, 2), ((1, 2), (3,))),
        ("moe/kernel", ("layers", "expert", "embed", "mlp"), (9, 8, 2, 3), ((2,), (3,))),
        ("conv/kernel", (None, None, "conv_in", "channels"), (3, 3, 4, 5), ((0, 1, 2), (3,))),
        ("embed/embedding", ("vocab", "embed"), (5, 2), None),
        ("lm/kernel", ("embed", "vocab"), (2, 5), None),
        ("head/kernel", ("embed", None), (2, 5), None),
        ("mlp/bias", ("layers", "mlp"), (9, 3), None),
        ("norm/scale", ("layers", None), (9, 3), None),
        ("conv/kernel", ("layers", "conv_in"), (9, 3), None),
    ],
)
def test_matrices_of_muon(path: str, names: Any, shape: Any, expected: Any) -> None:
    got = optimizer.Leaf(path, shape, names).matrix
    assert got == (None if expected is None else contrib.MuonDimensionNumbers(*expected))


def test_masks_go_by_the_name_of_the_leaf() -> None:
    params = {"blocks": named(stack(blocks(0)), ("layers",)), **OUTER}
    leaves = optimizer.describe(params)
    kernels = optimizer.decay_mask("kernels", leaves)
    assert kernels["blocks"] == KERNELS  # a stacked bias is a bias
    assert kernels["embed"] == {"embedding": False}
    assert kernels["head"] == {"kernel": True}
    assert set(jax.tree.leaves(optimizer.decay_mask("all", leaves))) == {True}
    assert set(jax.tree.leaves(optimizer.decay_mask("none", leaves))) == {False}
    with pytest.raises(ValueError, match=r"unknown optimizer.decay_mask.*nearest: 'kernels'"):
        optimizer.decay_mask("kernel", leaves)


def test_clipping_comes_before_the_decay() -> None:
    params = {"kernel": np.float32([1.0, 0.0])}
    section = options(name="sgd", learning_rate=1.0, clip_norm=1.0, weight_decay=0.5)
    got = runner(section, params)(params, [{"kernel": np.float32([3.0, 4.0])}])
    np.testing.assert_allclose(got["kernel"], [1 - (0.6 + 0.5), -0.8], rtol=1e-5)


@pytest.mark.parametrize("name", optimizer.NAMES)
def test_state_follows_the_shardings_of_the_parameters(name: str) -> None:
    """What launch/run/state.py relies on: abstract evaluation on a mesh of Explicit axes."""
    names = ("pipe", "fsdp", "tensor")
    mesh = AbstractMesh((1, 2, 2), names, axis_types=(AxisType.Explicit,) * 3)
    params = {"blocks": named(stack(blocks(0)), ("layers",))}
    axes = {"embed": "fsdp", "heads": "tensor", "mlp": "tensor"}

    def typed(leaf: Named) -> jax.ShapeDtypeStruct:
        spec = P(*(axes[n] if n in axes else None for n in leaf.names))
        sharding = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(leaf.value.shape, leaf.value.dtype, sharding=sharding)

    chain, _ = optimizer.make(options(name=name), 10, params)
    abstract = jax.tree.map(typed, params, is_leaf=lambda x: isinstance(x, Named))
    with jax.sharding.use_abstract_mesh(mesh):
        state = jax.eval_shape(chain.init, abstract)
    specs = {x.shape: x.sharding.spec for x in jax.tree.leaves(state) if x.shape == (2, 8, 16)}
    assert specs == ({} if name == "sgd" else {(2, 8, 16): P(None, "fsdp", "tensor")})


def rates(steps: int, at: list[int], **changes: Any) -> np.ndarray:
    return np.asarray(
        [optimizer.schedule(options(learning_rate=2.0, **changes), steps)(s) for s in at]
    )


def test_schedules() -> None:
    cosine = {"schedule": "cosine", "warmup_steps": 3, "final_fraction": 0.1}
    np.testing.assert_allclose(rates(13, [0, 1, 2, 3], **cosine), [0.5, 1.0, 1.5, 2.0])
    np.testing.assert_allclose(rates(13, [8, 13, 99], **cosine), [1.1, 0.2, 0.2], rtol=1e-6)
    np.testing.assert_allclose(rates(13, [5, 9], **cosine, decay_steps=7), [1.1, 0.2], rtol=1e-6)
    linear = {"schedule": "linear", "final_fraction": 0.5}
    np.testing.assert_allclose(rates(10, [0, 5, 10, 20], **linear), [2.0, 1.5, 1.0, 1.0])
    root = {"schedule": "inverse_sqrt", "warmup_steps": 3}
    np.testing.assert_allclose(rates(10, [0, 3, 15, 63], **root), [0.5, 2.0, 1.0, 0.5])
    stable = {"schedule": "warmup_stable_decay", "warmup_steps": 1, "final_fraction": 0.0}
    got = rates(20, [0, 1, 10, 16, 18, 20, 30], **stable, cooldown_fraction=0.2)
    np.testing.assert_allclose(got, [1.0, 2.0, 2.0, 2.0, 1.0, 0.0, 0.0])
    np.testing.assert_allclose(
        rates(10, [0, 1, 99], schedule="constant", warmup_steps=1), [1, 2, 2]
    )


@pytest.mark.parametrize("name", optimizer.SCHEDULES)
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (5, 5), (7, 2)])
@pytest.mark.parametrize("cooldown", [0.0, 1.0])
def test_schedules_stay_within_bounds(name: str, steps: int, warmup: int, cooldown: float) -> None:
    changes = {"schedule": name, "warmup_steps": warmup, "cooldown_fraction": cooldown}
    got = rates(steps, list(range(steps + 3)), **changes)
    assert np.all(np.isfinite(got))
    assert got[0] > 0
    assert got.max() <= 2.0 + 1e-6
    assert np.all(np.diff(got[: warmup + 1]) > 0)  # rises
    assert np.all(np.diff(got[warmup:]) <= 1e-6)  # then never again


def test_the_rate_reaches_the_update() -> None:
    section = options(name="sgd", learning_rate=1.0, weight_decay=0.0, schedule="linear")
    section.final_fraction = 0.0
    params = {"kernel": jnp.zeros(())}
    chain, rate = optimizer.make(section, 4, params)
    got = run_of(chain)(params, [{"kernel": np.float32(1)}] * 4)
    np.testing.assert_allclose(got["kernel"], -sum(float(rate(s)) for s in range(4)), rtol=1e-6)
    np.testing.assert_allclose(got["kernel"], -2.5, rtol=1e-6)


def test_unknown_names() -> None:
    for key, error in (("name", "'adamw'"), ("schedule", "'cosine'")):
        near = {"name": "adamww", "schedule": "cosin"}[key]
        with pytest.raises(ValueError, match=f"unknown optimizer.{key} '{near}'.*nearest: {error}"):
            optimizer.make(options(**{key: near}), 1, {"kernel": jnp.zeros(())})
