"""A tiny model with strong opinions, on any mesh, for the tests of generation."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch.run import decode
from launch.run.reading import Inputs, Loop
from nn import parallel
from nn.families import transformer

PROMPTS = [[5, 9, 2], [7], [1, 2, 3, 4, 5, 6], [8, 8, 3, 1]]


@dataclasses.dataclass(frozen=True)
class Tiny:
    """scale: of the matrices, so large that what attention finds decides what comes next."""

    vocab_size: int = 96
    windows: tuple[int, ...] = (0,)
    scale: float = 4.0
    seed: int = 0

    @functools.cached_property
    def model(self) -> transformer.Model:
        config = dataclasses.replace(
            transformer.tiny(),
            vocab_size=self.vocab_size,
            windows=self.windows,
            position="rotary",
            num_kv_heads=2,
            norm="rms",
        )
        return transformer.Model(config)

    @functools.cached_property
    def named(self) -> Any:
        example = transformer.example(self.model.config, 1)
        return jax.jit(self.model.init)(jax.random.key(self.seed), *example)

    @functools.cached_property
    def params(self) -> Any:
        params = parallel.unbox(self.named)["params"]
        return jax.tree.map(lambda x: self.scale * x if x.ndim >= 2 else x, params)

    @functools.cached_property
    def _forward(self) -> Any:
        return jax.jit(lambda params, tokens: self.model.apply({"params": params}, tokens))

    def logits(self, rows: list[list[int]], length: int = 24) -> np.ndarray:
        """What comes after each row, by the full pass, (rows, V)."""
        padded = np.zeros((len(rows), length), np.int32)
        for i, row in enumerate(rows):
            padded[i, : len(row)] = row
        every = np.asarray(self._forward(self.params, padded))
        return every[np.arange(len(rows)), [len(row) - 1 for row in rows]]


def inputs_of(prompts: list[list[int]], numbers: list[int] | None = None, seed: int = 4) -> Inputs:
    lengths = np.asarray([len(prompt) for prompt in prompts], np.int32)
    padded = np.zeros((len(prompts), max(lengths)), np.int32)
    for i, prompt in enumerate(prompts):
        padded[i, : len(prompt)] = prompt
    rows = jnp.asarray(numbers or list(range(len(prompts))), jnp.int32)
    key = jax.random.key_data(jax.random.key(seed))
    return Inputs(jnp.asarray(padded), jnp.asarray(lengths), key, rows)


def mesh_of(named: Any, **sizes: int) -> tuple[jax.sharding.Mesh, Any]:
    """The mesh, and the partition of the parameters on it."""
    mesh = parallel.make_mesh(sizes, jax.devices()[: int(np.prod([1, *sizes.values()]))])
    return mesh, parallel.specs(named, parallel.Rules(), mesh)["params"]


def view_of(
    loop: Loop, params: Any, inputs: Inputs, mesh: Any = None, specs: Any = None
) -> dict[str, np.ndarray]:
    """The end of a loop, on one device by default."""
    if mesh is None:
        run = jax.jit(functools.partial(decode.run, loop))
    else:
        run = decode.OnMesh(loop, mesh, parallel.Rules(), specs).whole()
    found: dict[str, np.ndarray] = jax.device_get(run(params, inputs))
    return found


def new_of(view: dict[str, np.ndarray], prompts: list[list[int]]) -> list[list[int]]:
    """The new tokens of each row."""
    rows = enumerate(prompts)
    return [view["tokens"][i, len(prompt) : view["ends"][i]].tolist() for i, prompt in rows]
