"""What an encoder-decoder takes in before it writes: a memory of texts or of sound, on the mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from nn import parallel
from nn.parallel import BATCH_AXES


def reads_sources(model: nn.Module) -> bool:
    """Whether a model writes an answer to a source text, rather than going on with a prompt.

    Raises ValueError for one that reads something else.
    """
    if not hasattr(model, "encode"):
        return False
    if not hasattr(model.config, "start_token"):
        raise ValueError(
            "the model's encoder reads no text: it is used from Python, by its `encode` and "
            "launch.run.decode (of sound: launch.transcribe); nearest: an encoder of tokens"
        )
    return True


def memory(
    model: nn.Module,
    params: Any,
    specs: Any,
    mesh: jax.sharding.Mesh,
    rules: parallel.Rules,
    sources_BS: jax.Array,
    lengths_B: jax.Array,
) -> Mapping[str, jax.Array]:
    """The keyword arguments by which `hidden` sees the sources, rows over the mesh.

    sources_BS: tokens, padded on the right; lengths_B: tokens of each.
    """
    rules, rows = _per_row(mesh, rules)

    def encode(params: Any, sources: jax.Array, lengths: jax.Array) -> dict[str, Any]:
        columns = jnp.arange(sources.shape[1])[None]
        known = (columns < lengths[:, None]).astype(jnp.int32)
        states = model.apply({"params": params}, sources, known, method="encode")
        return {"memory": states, "memory_segments": known}

    out = {"memory": rows, "memory_segments": rows}
    spread = parallel.spmd(encode, mesh, rules, (specs, rows, rows), out)
    found: Mapping[str, jax.Array] = jax.jit(spread)(params, sources_BS, lengths_B)
    return found


def hearing(
    model: nn.Module, specs: Any, mesh: jax.sharding.Mesh, rules: parallel.Rules
) -> Callable[[Any, jax.Array], Mapping[str, jax.Array]]:
    """`(params, sound (B, N)) -> memory`, one program; see the function `memory`."""
    rules, rows = _per_row(mesh, rules)

    def encode(params: Any, sound: jax.Array) -> dict[str, Any]:
        return {"memory": model.apply({"params": params}, sound, method="encode")}

    return jax.jit(parallel.spmd(encode, mesh, rules, (specs, rows), {"memory": rows}))


def _per_row(mesh: jax.sharding.Mesh, rules: parallel.Rules) -> tuple[parallel.Rules, P]:
    """The rules for whole rows on each device, and how rows lie on the mesh."""
    whole = dataclasses.replace(rules, sequence_parallel=False)
    return whole, P(parallel.mesh.present(mesh, BATCH_AXES) or None)
