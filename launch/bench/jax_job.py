"""Jobs of ours and of the Linen peer: a jitted step whose state is donated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax
import jax
import numpy as np

from launch.bench.job import Job

VERSIONS = {"jax": jax.__version__, "flax": flax.__version__, "numpy": np.__version__}


def device() -> str:
    return "cpu" if jax.default_backend() == "cpu" else "accelerator"


def memory() -> int | None:
    """Peak bytes on the first device; None where it does not say."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats["peak_bytes_in_use"] if "peak_bytes_in_use" in stats else None


def trainer(step: Callable[..., Any], state: Any, batch: Any, where: str, parameters: int) -> Job:
    """step: jitted, `(state, batch) -> (state, loss)`."""
    if where != device():
        raise RuntimeError(f"no {where} for JAX here: its devices are {jax.devices()}")
    held = [state]

    def run() -> Any:
        held[0], loss = step(held[0], batch)
        return loss

    return Job(
        step=run,
        wait=jax.block_until_ready,
        device=where,
        versions=VERSIONS,
        parameters=parameters,
        loss=float,
        memory=memory,
    )


def function(call: Callable[[], Any], where: str, parameters: int = 0) -> Job:
    """A job without state."""
    return Job(
        step=call,
        wait=jax.block_until_ready,
        device=where,
        versions=VERSIONS,
        parameters=parameters,
        memory=memory,
    )


def size_of(params: Any) -> int:
    """Number of parameters."""
    return sum(x.size for x in jax.tree.leaves(params))
