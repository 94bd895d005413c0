"""What parameters are for: by hand on small programs, then against the FLOPs of every family."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from launch.run import resolve
from nn.analysis import flops, parameters
from nn.parallel.weight import Named, is_named

FAMILIES = resolve.available("model")


def test_a_weight_is_followed_to_its_product() -> None:
    def forward(params: dict[str, jax.Array], x: jax.Array, ids: jax.Array) -> jax.Array:
        h = params["table"][ids] + x
        kernel = 2 * params["kernel"].T.astype(jnp.float32) + params["a"] @ params["b"]
        h = jnp.tanh(h @ kernel + params["bias"])

        def layer(carry: tuple[jax.Array, jax.Array], w: jax.Array) -> Any:
            h, scale = carry
            return (jax.checkpoint(lambda h: h @ w)(h) * scale, scale), None

        (h, _), _ = jax.lax.scan(layer, (h, params["scale"]), params["stack"])
        first, second = params["pair"][jnp.asarray([1, 0])]  # looked up, but to be multiplied
        h = h @ first @ second

        def cell(state: jax.Array, row: jax.Array) -> Any:  # whose state knows nothing at first
            return jnp.tanh(state @ params["recurrent"] + row), None

        state, _ = jax.lax.scan(cell, jnp.zeros(4), h)
        return state.sum() * params["unused"]

    shapes = {"a": (4, 1), "b": (1, 4), "bias": (1, 4), "kernel": (4, 4), "scale": (1, 4)}
    shapes |= {"pair": (2, 4, 4), "recurrent": (4, 4), "stack": (3, 4, 4), "table": (9, 4)}
    shapes |= {"unused": ()}
    params = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    ids = jnp.zeros(2, jnp.int32)
    found = parameters.uses(forward, params, jnp.zeros((2, 4)), ids)
    names = sorted(params)
    products = ["a", "b", "kernel", "pair", "recurrent", "stack"]
    assert [names[i] for i in sorted(found.multiplied)] == products
    assert [names[i] for i in sorted(found.looked_up)] == ["pair", "table"]
    matmul = 4 + 4 + 16 + 32 + 16 + 48
    assert parameters.count(params, found) == parameters.Counts(
        total=matmul + 4 + 4 + 36 + 1, nonemb=matmul + 4 + 4 + 1, matmul=matmul
    )


def test_the_vocabulary_is_no_part_of_the_blocks_even_where_it_is_multiplied() -> None:
    """A tied table is looked up and multiplied; its bias is only added."""

    def forward(params: dict[str, jax.Array], ids: jax.Array) -> jax.Array:
        h = params["table"][ids] @ params["kernel"]
        return h @ params["table"].T + params["bias"]

    tree = {
        "bias": Named(jnp.zeros((1, 9)), (None, "vocab")),
        "kernel": Named(jnp.zeros((4, 4)), ("embed", "mlp")),
        "table": Named(jnp.zeros((9, 4)), ("vocab", "embed")),
    }
    params = jax.tree.map(lambda x: x.value, tree, is_leaf=is_named)
    found = parameters.uses(forward, params, jnp.zeros(2, jnp.int32))
    assert parameters.count(tree, found) == parameters.Counts(total=61, nonemb=16, matmul=52)


@pytest.mark.parametrize("family", FAMILIES)
def test_products_of_a_family_account_for_its_flops(family: str) -> None:
    """Each weight meets each position once, but for what images and sounds do with theirs."""
    module = resolve.module("model", family)
    config = module.tiny()
    model, inputs = module.Model(config), module.example(config, 2)
    named = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs))
    values = jax.tree.map(lambda x: x.value if is_named(x) else x, named, is_leaf=is_named)
    rest = {k: v for k, v in values.items() if k not in ("params", "intermediates")}

    def forward(params: Any, rest: Any, inputs: Any) -> Any:
        return model.apply({"params": params, **rest}, *inputs)

    found = parameters.uses(forward, values["params"], rest, inputs)
    counts = parameters.count(named["params"], found)
    work = flops.count(forward, values["params"], rest, inputs).matmul
    products = sum(work.values()) - work.get("attention", 0)
    rows = sorted({math.prod(x.shape[:2]) if x.dtype == jnp.int32 else 2 for x in inputs})
    assert counts.matmul < counts.total and counts.nonemb <= counts.total
    if family in ("mlp", "transformer"):  # every weight meets every row, exactly once
        assert products == 2 * rows[0] * counts.matmul
    else:
        assert products > 2 * rows[0] * counts.matmul * (0.9 if rows[0] > 2 else 1)
    has_tokens = any(x.dtype == jnp.int32 for x in inputs)
    vocabulary = [
        x for x in jax.tree.leaves(named["params"], is_leaf=is_named) if "vocab" in x.names
    ]
    assert has_tokens == bool(vocabulary)
    assert counts.total - counts.nonemb >= sum(x.value.size for x in vocabulary)
