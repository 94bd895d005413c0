"""Our attention layer on the recorded inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nn.layers.attention import Attention, Pattern
from nn.layers.position import alibi_slopes
from tests.golden_store import Record
from tests.vjp import values_and_gradients


def tolerance(variant: str) -> dict[str, float]:
    return {"": 4e-6, "slopes/": 1e-7}


def layer(name: str, about: Any, segments: jax.Array) -> Callable[..., jax.Array]:
    """The layer as a function of its input and its weights."""

    def apply(x: jax.Array, memory: jax.Array | None = None, **weights: jax.Array) -> jax.Array:
        _, heads, head_dim = weights["query_kernel"].shape
        made = Attention(
            heads=heads,
            kv_heads=weights["key_kernel"].shape[1],
            head_dim=head_dim,
            bias="out_bias" in weights,
            alibi="alibi" in name,
            cross=memory is not None,
        )
        positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        pattern, known = Pattern(), None
        if name not in ("full", "cross"):
            pattern = Pattern(True, about["window"] if "window" in name else 0)
            known = segments if "segments" in name else None
        variables = {"params": weights}
        return made.apply(variables, x, positions, pattern, known, memory_BSD=memory)[0]

    return apply


def compute(variant: str, record: Record) -> dict[str, np.ndarray]:
    """The names are those of the record."""
    segments = jnp.asarray(record.inputs["segments"])
    cases = dict.fromkeys(key.partition("/")[0] for key in record.inputs if "/" in key)
    found: dict[str, np.ndarray] = {}
    for name in cases:
        given = {
            key.removeprefix(f"{name}/"): x
            for key, x in record.inputs.items()
            if key.startswith(f"{name}/")
        }
        ct = given.pop("ct")
        results = values_and_gradients(layer(name, record.about, segments), given, ct)
        results = {key: x for key, x in results.items() if key != "d_key_bias"}  # see the record
        found |= {f"{name}/{key}": x for key, x in results.items()}
    return found | {f"slopes/{heads}": alibi_slopes(heads) for heads in (8, 6, 20)}
