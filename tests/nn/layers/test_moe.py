"""Routing against loops, experts against a dense sum, auxiliary losses against their formulas."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn import activations, parallel
from nn.analysis import flops
from nn.layers import grouped, moe
from nn.layers.moe import MoE, Routing
from nn.parallel.expert import back, place, ranks
from nn.parallel.mesh import use_rules
from nn.parallel.random import place as place_of_noise

B, T, D, F, E = 4, 6, 10, 7, 8
OPTIONS = {
    "mixtral": {},
    "top-1, not normalised": {"top_k": 1, "normalize": False},
    "softmax of the chosen": {"scores": "softmax_of_chosen", "top_k": 3, "normalize": False},
    "sigmoid, scaled": {"scores": "sigmoid", "scale": 2.5},
    "deepseek-v2": {"groups": 4, "top_groups": 2, "normalize": False, "top_k": 3, "scale": 16.0},
    "deepseek-v3": {
        "scores": "sigmoid",
        "groups": 4,
        "top_groups": 2,
        "group_score": "top2",
        "bias_rate": 0.1,
        "top_k": 3,
    },
}


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def by_hand(r: Routing, logits: np.ndarray, bias: np.ndarray) -> tuple[list[int], list[float]]:
    """What one token chooses, in the words of the papers."""
    mass = np.exp(logits - logits.max())
    scores = 1 / (1 + np.exp(-logits)) if r.scores == "sigmoid" else mass / mass.sum()
    wanted = scores + bias
    allowed = set(range(r.experts))
    if r.groups > 1:
        members = [list(m) for m in np.arange(r.experts).reshape(r.groups, -1)]
        top = 1 if r.group_score == "max" else 2
        worth = [sum(sorted(wanted[m])[-top:]) for m in members]
        best = sorted(range(r.groups), key=lambda g: -worth[g])[: r.top_groups]
        allowed = {e for g in best for e in members[g]}
    chosen = sorted(allowed, key=lambda e: -wanted[e])[: r.top_k]
    weights = [scores[e] for e in chosen]
    if r.scores == "softmax_of_chosen":
        weights = [mass[e] / mass[chosen].sum() for e in chosen]
    if r.normalize:
        weights = [w / sum(weights) for w in weights]
    return chosen, [w * r.scale for w in weights]


@pytest.mark.parametrize("name", OPTIONS)
def test_choices_are_those_of_a_loop(name: str) -> None:
    r = Routing(E, **OPTIONS[name])
    logits = normal(0, B, T, E)
    bias = 0.2 * normal(1, E) if r.bias_rate else None
    experts, weights, probabilities = moe.route(r, logits, bias)
    biases = np.zeros(E) if bias is None else np.asarray(bias)
    for b in range(B):
        for t in range(T):
            chosen, expected = by_hand(r, np.asarray(logits[b, t], np.float64), biases)
            assert experts[b, t].tolist() == chosen
            np.testing.assert_allclose(weights[b, t], expected, rtol=1e-5)
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1.0, rtol=1e-5)


def layer(activation: str = "swiglu", **options: Any) -> MoE:
    own = {k: options.pop(k) for k in ("shared_hidden", "shared_gate", "train") if k in options}
    init = lambda key, shape: jax.random.normal(key, shape) / 3  # noqa: E731
    return MoE(Routing(E, **options), F, activation, kernel_init=init, down_init=init, **own)


def initial(module: MoE, x: jax.Array) -> dict[str, Any]:
    made = parallel.unbox(module.init(jax.random.key(2), x))
    return {name: tree for name, tree in made.items() if name != "intermediates"}


def dense(module: MoE, params: Any, x: jax.Array) -> jax.Array:
    """Every expert on every token, weighted by 0 where it was not chosen."""
    experts, weights, _ = moe.route(module.routing, x @ params["router_kernel"])
    each = jnp.sum(jax.nn.one_hot(experts, E) * weights[..., None], axis=-2)
    up = [params[f"{name}_kernel"] for name in ("gate", "up") if f"{name}_kernel" in params]
    hidden = [jnp.einsum("btd,edf->btef", x, w) for w in up]
    h = activations.get(module.activation)(*hidden)
    y = jnp.einsum("btef,efd,bte->btd", h, params["down_kernel"], each)
    if module.shared_hidden:
        s = params["shared"]
        h = jax.nn.silu(x @ s["gate"]["kernel"]) * (x @ s["up"]["kernel"])
        gate = jax.nn.sigmoid(x @ params["shared_gate"]["kernel"]) if module.shared_gate else 1.0
        y = y + gate * (h @ s["down"]["kernel"])
    return y


@pytest.mark.parametrize("platform", ["cpu", "tpu"])  # blocks of rows, or ragged_dot
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"activation": "relu", "top_k": 3},
        {"shared_hidden": 5, "scores": "sigmoid"},
        {"shared_hidden": 5, "shared_gate": True, "scale": 1.5},
    ],
)
def test_experts_equal_the_dense_sum(options: dict[str, Any], platform: str) -> None:
    """Values and gradients; one expert is never chosen, and its gradient is zero."""
    module, x = layer(**options), normal(3, B, T, D)
    x = x.at[..., 0].set(4.0)
    params = initial(module, x)["params"]
    params["router_kernel"] = params["router_kernel"].at[0, 5].set(-9.0)
    with use_rules(parallel.Rules(), platform):
        ours = jax.value_and_grad(
            lambda p, x: jnp.sum(jnp.sin(module.apply({"params": p}, x)[0])), argnums=(0, 1)
        )(params, x)
    theirs = jax.value_and_grad(lambda p, x: jnp.sum(jnp.sin(dense(module, p, x))), argnums=(0, 1))(
        params, x
    )
    for path, a in jax.tree_util.tree_leaves_with_path(ours):
        b = dict(jax.tree_util.tree_leaves_with_path(theirs))[path]
        np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(b).max()), err_msg=str(path))
    assert not ours[1][0]["down_kernel"][5].any()
    assert ours[1][0]["down_kernel"][4].any()


def test_rows_are_moved_and_brought_back() -> None:
    slots = jnp.asarray([[3, 0], [5, 9], [9, 4]])  # of 9; a slot of 9 is none
    x = normal(0, 3, 2)
    moved = place(x, slots, 9)
    assert jnp.flatnonzero(moved.any(axis=-1)).tolist() == [0, 3, 4, 5]
    np.testing.assert_array_equal(moved[3], x[0])
    np.testing.assert_array_equal(moved[4], x[2])
    again = back(moved, slots)
    np.testing.assert_array_equal(again[0, 1], x[0])
    assert not again[1, 1].any()
    y, c = normal(1, 9, 2), normal(2, 3, 2, 2)  # each is the transpose of the other
    _, pull = jax.vjp(lambda x: place(x, slots, 9), x)
    np.testing.assert_allclose(pull(y)[0], back(y, slots).sum(axis=1), rtol=1e-6)
    _, pull = jax.vjp(lambda y: back(y, slots), y)
    np.testing.assert_allclose(jnp.vdot(pull(c)[0], y), jnp.vdot(c, back(y, slots)), rtol=1e-5)


def test_first_choices_come_first() -> None:
    rank, sizes = ranks(jnp.asarray([[1, 0], [1, 2], [0, 1]]), 2)  # group 2 is none
    assert rank.tolist() == [[0, 1], [1, 0], [0, 2]]
    assert sizes.tolist() == [2, 3]


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_blocks_cost_little_more_than_the_rows(platform: str) -> None:
    """64 + 8 blocks of 128 rows for 8192 rows in 8 groups; a ragged_dot on a CPU costs 8 times."""

    def run(x: jax.Array, groups: jax.Array) -> jax.Array:
        up, down = [jnp.zeros((8, 4, 6))] * 2, jnp.zeros((8, 6, 4))
        return grouped.feed_forward(activations.get("swiglu"), up, down, x, groups, 8192)

    with use_rules(parallel.Rules(), platform):
        found = flops.count(run, jnp.zeros((4096, 4)), jnp.zeros((4096, 2), jnp.int32))
    kind, rows = {"cpu": ("dot", 72 * 128), "tpu": ("ragged_dot", 8192)}[platform]
    assert found.matmul == {kind: 3 * 2 * rows * 4 * 6}


@pytest.mark.parametrize("parts", [1, 2])
def test_auxiliary_losses_by_their_formulas(parts: int) -> None:
    logits = normal(4, B, T, E)
    r = Routing(E, balance_loss=0.3, z_loss=0.2)
    experts, _, probabilities = moe.route(r, logits)
    balance = []
    for m in range(parts):
        own, chosen = np.asarray(probabilities)[m::parts], np.asarray(experts)[m::parts]
        tokens = own.shape[0] * T
        share = np.asarray([(chosen == e).sum() / tokens for e in range(E)])
        balance.append(E * np.sum(share * own.reshape(-1, E).mean(axis=0)))
    z = np.square(np.log(np.exp(np.asarray(logits)).sum(axis=-1))).mean()
    module = layer(balance_loss=0.3, z_loss=0.2, train=True)
    x = jnp.concatenate([logits, jnp.zeros((B, T, D - E))], axis=-1)
    params = initial(module, x)["params"] | {"router_kernel": jnp.eye(D, E)}
    with use_rules(parallel.Rules(microbatches=parts)):
        _, aux = module.apply({"params": params}, x)
        np.testing.assert_allclose(aux["load_balance"], np.mean(balance), rtol=1e-5)
        np.testing.assert_allclose(aux["router_z"], z, rtol=1e-5)
        np.testing.assert_allclose(aux["loss"], 0.3 * np.mean(balance) + 0.2 * z, rtol=1e-5)
        assert "loss" not in module.clone(train=False).apply({"params": params}, x)[1]
        # Inside a pipeline a call holds the rows of one part.
        each = []
        for m in range(parts):
            with place_of_noise(part=m, parts=parts):
                each.append(module.apply({"params": params}, x[m::parts])[1]["load_balance"])
        np.testing.assert_allclose(each, balance, rtol=1e-5)


def test_a_uniform_router_has_a_balance_loss_of_k() -> None:
    loads = jnp.full((1, E), B * T * 3 / E)
    uniform = jnp.full((B, T, E), 1 / E)
    np.testing.assert_allclose(moe.balance_loss(loads, uniform), 3.0, rtol=1e-6)


def test_capacity() -> None:
    """Enough room changes nothing; with little, later tokens and second choices go first."""
    x = normal(5, B, T, D)
    free = layer()
    params = {"params": initial(free, x)["params"]}
    y, _ = free.apply(params, x)
    wide = layer(capacity=float(E))
    roomy, aux = wide.apply(params, x)
    np.testing.assert_array_equal(y, roomy)
    assert aux["dropped"] == 0
    tight = layer(capacity=0.5, top_k=2)  # 0.5 * 24 * 2 / 8 = 3 tokens of an expert
    y, aux = tight.apply(params, x)
    experts, weights, _ = moe.route(tight.routing, x @ params["params"]["router_kernel"])
    taken, expected = dict.fromkeys(range(E), 0), np.zeros((B * T, D))
    dropped = 0
    for k in range(2):
        for n in range(B * T):
            e = int(experts.reshape(-1, 2)[n, k])
            taken[e] += 1
            if taken[e] > 3:
                dropped += 1
                continue
            p = {name: params["params"][f"{name}_kernel"][e] for name in ("gate", "up", "down")}
            row = x.reshape(-1, D)[n]
            out = (jax.nn.silu(row @ p["gate"]) * (row @ p["up"])) @ p["down"]
            expected[n] += weights.reshape(-1, 2)[n, k] * out
    np.testing.assert_allclose(y.reshape(-1, D), expected, atol=1e-5)
    assert dropped > 5
    np.testing.assert_allclose(aux["dropped"], dropped / (B * T * 2), rtol=1e-6)


def test_the_bias_evens_the_load_and_leaves_the_weights_alone() -> None:
    module = layer(bias_rate=0.02, train=True, scores="sigmoid")
    x = normal(6, 16, T, D)
    variables = initial(module, x)
    skew = variables["params"]["router_kernel"].at[:, :2].add(0.3)
    variables["params"]["router_kernel"] = skew
    x = x.at[..., 0].set(2.0)
    busiest = []
    for _ in range(40):
        (_, aux), new = module.apply(variables, x, mutable=["statistics"])
        busiest.append(float(aux["busiest"]))
        change = new["statistics"]["bias"] - variables["statistics"]["bias"]
        assert set(np.round(np.asarray(change) / 0.02).tolist()) <= {-1.0, 0.0, 1.0}
        variables = variables | dict(new)
    assert busiest[0] > 1.8 and max(busiest[-5:]) < 1.3, busiest
    logits = x @ skew
    biased = moe.route(module.routing, logits, variables["statistics"]["bias"])
    plain = jax.nn.sigmoid(logits)
    chosen = jnp.take_along_axis(plain, biased[0], axis=-1)
    np.testing.assert_allclose(biased[1], chosen / chosen.sum(axis=-1, keepdims=True), rtol=1e-5)
    assert (biased[0] != moe.route(module.routing, logits)[0]).any()
    # Evaluation reads the bias and leaves it.
    quiet = module.clone(train=False)
    _, new = quiet.apply(variables, x, mutable=["statistics"])
    np.testing.assert_array_equal(new["statistics"]["bias"], variables["statistics"]["bias"])


def test_jitter_is_for_training_and_for_the_router_only() -> None:
    module, x = layer(jitter=0.2, train=True), normal(7, B, T, D)
    params = {"params": initial(module.clone(train=False), x)["params"]}
    quiet, _ = module.clone(train=False).apply(params, x)
    np.testing.assert_array_equal(quiet, layer().apply(params, x)[0])
    one, two = (module.apply(params, x, rngs={"dropout": jax.random.key(i)})[0] for i in (0, 1))
    assert jnp.abs(one - two).max() > 0
    same = params["params"] | {"router_kernel": jnp.zeros((D, E))}  # nothing to disturb
    still = module.apply({"params": same}, x, rngs={"dropout": jax.random.key(0)})[0]
    np.testing.assert_array_equal(still, layer().apply({"params": same}, x)[0])


def test_loads_are_sown() -> None:
    module, x = layer(), normal(8, B, T, D)
    params = {"params": initial(module, x)["params"]}
    _, sown = module.apply(params, x, mutable=["intermediates"])
    assert sown["intermediates"]["loads"][0].sum() == B * T * 2


@pytest.mark.parametrize(
    "options, words",
    [
        ({"scores": "softmx"}, "unknown router_scores 'softmx': .*; nearest: 'softmax'"),
        ({"groups": 3}, "router_groups=3 does not divide num_experts=8; nearest that does: 2"),
        ({"groups": 2, "top_groups": 3}, "at most router_groups=2; nearest: 2"),
        ({"top_k": 9}, "at most the 8 experts that can be chosen; nearest: 8"),
        ({"groups": 4, "top_groups": 1, "top_k": 3}, "at most the 2 experts .*; nearest: 2"),
        ({"groups": 8, "group_score": "top2", "top_groups": 2}, "nearest: 'max'"),
        ({"capacity": -1.0}, "capacity=-1.0: must be at least 0"),
    ],
)
def test_impossible_routings_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Routing(E, **options)


def test_options_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Routing(E).top_k = 3  # type: ignore[misc]
