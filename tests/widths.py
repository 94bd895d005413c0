"""Small models of every family, wider ones, and what copies of all units have for weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nn import initializers, parallel
from nn.learning.parametrisation import Row
from nn.parallel.weight import Named
from tests import parallel_cases as cases

# Small models, and the fields that make them wider. What does not repeat when it is made longer,
# such as rotary frequencies, is left out.
NARROW: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "mlp": ({"features": (8, 12, 8), "norm": "layer"}, ("features",)),
    "neural_lm": ({"hidden_dim": 16}, ("hidden_dim", "embed_dim")),
    "resnet": ({"width": 4}, ("width",)),
    "transformer": ({"dim": 16}, ("dim", "mlp_dim")),
    "vit": ({"dim": 16, "num_layers": 2, "num_heads": 2}, ("dim", "mlp_dim", "num_heads")),
    "bert": ({"embed_dim": 12, "num_layers": 2}, ("dim", "mlp_dim", "embed_dim")),
    "seq2seq_transformer": ({"position": "relative", "scale_head": True}, ("dim", "mlp_dim")),
    "clip": (
        {"kind": "siglip", "embed_dim": 32},
        ("image_dim", "text_dim", "embed_dim", "image_mlp_dim", "text_mlp_dim"),
    ),
    "whisper": ({}, ("dim", "num_heads", "decoder_heads", "mlp_dim", "decoder_mlp_dim")),
}


def narrow_of(name: str) -> Any:
    fields, _ = NARROW[name]
    config = dataclasses.replace(cases.family(name).tiny(), **fields)
    # Scores of attention are then of a size that matters.
    return dataclasses.replace(config, init_std=0.3) if hasattr(config, "init_std") else config


def wide_of(name: str, narrow: Any, times: int = 2) -> Any:
    _, widths = NARROW[name]

    def larger(value: Any) -> Any:
        return tuple(times * x for x in value) if isinstance(value, tuple) else times * value

    wide = dataclasses.replace(narrow, **{f: larger(getattr(narrow, f)) for f in widths})
    if not hasattr(wide, "factors"):
        return wide
    return dataclasses.replace(wide, **wide.factors(narrow))


def abstract(name: str, config: Any) -> Any:
    family = cases.family(name)
    inputs = family.example(config, 2)
    return jax.eval_shape(lambda: family.Model(config).init(jax.random.key(0), *inputs))["params"]


def widened(params: Any, rows: dict[str, Row]) -> Any:
    """Every unit again and again; what sums over them is divided by how often."""

    def one(path: Any, x: Any) -> jax.Array:
        row = rows[jax.tree_util.keystr(path, simple=True, separator="/")]
        for axis, (new, old) in enumerate(zip(row.shape, row.base_shape, strict=True)):
            x = np.repeat(x, new // old, axis)
        return jnp.asarray(x / row.fan_in)

    return jax.tree_util.tree_map_with_path(one, params)


def first_values(name: str, config: Any) -> Any:
    """With biases that are not 0, and heads that say something."""
    family = cases.family(name)
    params = parallel.unbox(
        jax.jit(family.Model(config).init)(jax.random.key(1), *family.example(config, 2))
    )["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + rng.normal(size=x.shape).astype(np.float32) / 20, params)


def network(sizes: tuple[int, int, int]) -> dict[str, Named]:
    """A stack of two hidden matrices between an input and an output."""
    inputs, hidden, outputs = sizes
    draw, key = initializers.normal(0.5), jax.random.key(0)

    def weight(i: int, *shape: int) -> jax.Array:
        return draw(jax.random.fold_in(key, i), shape)

    return {
        "first": {
            "kernel": Named(weight(0, inputs, hidden), (None, "embed"), 0.5),
            "bias": Named(weight(1, hidden), (None,)),
        },
        "blocks": {
            "kernel": Named(weight(2, 2, hidden, hidden), ("layers", "embed", "mlp"), 0.5),
            "scale": Named(weight(3, 2, hidden), ("layers", None)),
        },
        "output": {"kernel": Named(weight(4, hidden, outputs), ("embed", None), 0.5)},
    }
