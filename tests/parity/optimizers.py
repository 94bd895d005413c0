"""Our optimizers, by their names in a config, on the recorded start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from experiments import base
from launch.run import optimizer
from tests.golden_store import Record

NAMES = ("sgd", "momentum", "nesterov", "rmsprop", "adam", "adamw", "lion", "lamb")
Params = dict[str, jax.Array]


def tolerance(variant: str) -> dict[str, float]:
    rounding = {"float32": 2e-6, "float64": 1e-12}[variant]
    return {
        "": rounding,
        "adamw_clip/": 4e-6,  # torch's 1e-6 beside the norm
        "adafactor/": max(rounding, 1e-6),  # its decay rate is a float32 power in Optax
        "schedule/": 1e-6,  # rates are float32
    }


def options(about: Mapping[str, Any], name: str, **changes: Any) -> ConfigDict:
    section = base.get_config().optimizer
    given = dict(about["options"], name=name, schedule="constant", clip_norm=0.0) | changes
    for key, value in given.items():
        section[key] = value
    return section


def steps(section: ConfigDict, start: Params, phase: Params, about: Any) -> dict[str, jax.Array]:
    """Parameters at the kept steps."""
    chain, _ = optimizer.make(section, about["steps"], start)

    def step(carry: Any, n: jax.Array) -> Any:
        params, state = carry
        gradient = jax.tree.map(
            lambda p, f: 0.125 * p + jnp.sin(n.astype(f.dtype) + f), params, phase
        )
        updates, state = chain.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    _, path = jax.lax.scan(step, (start, chain.init(start)), jnp.arange(1, about["steps"] + 1))
    return {f"{name}/{n}": x[n - 1] for name, x in path.items() for n in about["kept"]}


def compute(variant: str, record: Record) -> dict[str, np.ndarray]:
    """The names are those of the record."""
    with jax.enable_x64(variant == "float64"):
        about, inputs = record.about, record.inputs
        found: dict[str, Any] = {}

        def part(kind: str) -> Params:
            return {
                k.removeprefix(kind): jnp.asarray(v)
                for k, v in inputs.items()
                if k.startswith(kind)
            }

        def run(name: str, section: ConfigDict, start: Params, phase: Params) -> None:
            path = jax.jit(lambda: steps(section, start, phase, about))()
            found.update({f"{name}/{k}": x for k, x in path.items()})

        for name in NAMES:
            run(name, options(about, name), part("start/"), part("phase/"))
        clip = options(about, "adamw", clip_norm=about["clip_norm"])
        run("adamw_clip", clip, part("start/"), part("phase/"))
        sides = inputs["sides"]
        start, phase = ({"kernel": jnp.outer(sides[i], sides[i + 1][:130])} for i in (0, 2))
        run("adafactor", options(about, "adafactor", weight_decay=0.0), start, phase)
        for n in about["kept"]:
            found[f"adafactor/kernel/{n}"] = found[f"adafactor/kernel/{n}"][::16, ::16]
        for name in ("cosine", "linear"):
            rate = optimizer.schedule(options(about, "sgd", schedule=name), about["steps"])
            found[f"schedule/{name}"] = jax.vmap(rate)(jnp.arange(about["steps"] + 5))
        return {key: np.asarray(value) for key, value in found.items()}
