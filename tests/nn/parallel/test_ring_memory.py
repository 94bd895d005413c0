"""Ring attention's memory, as the compiler reports it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from nn import parallel
from nn.parallel.pattern import Pattern
from nn.parallel.ring import Rows, block_attention
from nn.parallel.sequence import columns

MIB = 2**20


def temporaries(length: int, shards: int) -> float:
    """MiB per device of the gradient of causal attention: 4 heads of 64, float32, 1 row."""
    mesh = parallel.make_mesh({"context": shards}, jax.devices()[:shards])
    spec = P(None, "context")

    def loss(q: Any, k: Any, v: Any) -> jax.Array:
        rows = Rows(columns(q.shape[1]))
        out = block_attention(q, k, v, Pattern(causal=True), rows, rows, ring=True)
        return parallel.psum(jnp.sum(out * out), "context")

    run = parallel.spmd(jax.grad(loss, (0, 1, 2)), mesh, parallel.Rules(), (spec,) * 3, (spec,) * 3)
    x = jax.ShapeDtypeStruct(
        (1, length, 4, 64), jnp.float32, sharding=jax.sharding.NamedSharding(mesh, spec)
    )
    analysis: Any = jax.jit(run).lower(x, x, x).compile().memory_analysis()
    return analysis.temp_size_in_bytes / MIB


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_temporaries_at_8192_positions_on_8_devices() -> None:
    """33.0 MiB."""
    assert temporaries(8192, 8) <= 36


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_temporaries_grow_with_the_length_and_not_its_square() -> None:
    """Of four times the positions 1.9 times as much: tiles stay as large as they are."""
    assert temporaries(32768, 8) <= 2.2 * temporaries(8192, 8)
