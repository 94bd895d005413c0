"""Remat by policy: the same numbers as without, and the memory that its name promises."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from nn import parallel
from nn.layers.stack import REMAT
from tests import parallel_cases as cases

CONFIGS = {name: cases.family(name).tiny() for name in ("transformer", "resnet")}
POLICIES = [policy for policy in REMAT if policy != "none"]


@functools.cache
def measured(name: str, mesh: str, **changes: Any) -> cases.Result:
    config = dataclasses.replace(CONFIGS[name], **changes)
    return cases.measure(name, config, cases.MESHES[mesh] if mesh else {})


MESH = "fsdp2 x tensor2 x data2"
CASES = [
    *(("transformer", policy, MESH) for policy in POLICIES),
    ("resnet", "names", ""),
    *(pytest.param("resnet", policy, MESH, marks=pytest.mark.slow) for policy in POLICIES),
]


@pytest.mark.parametrize(("name", "policy", "mesh"), CASES)
def test_loss_and_gradients_are_those_without(name: str, policy: str, mesh: str) -> None:
    plain, again = measured(name, mesh), measured(name, mesh, remat=policy)
    assert abs(again.loss - plain.loss) <= 1e-6 * abs(plain.loss)
    error, leaf = cases.worst(again.gradients, plain.gradients)
    assert error <= 1e-5, f"gradient of {leaf}: relative error {error:.1e}"


def kept(name: str, **changes: Any) -> tuple[int, int]:
    """Bytes that the backward pass finds: on the device and on the host, less the parameters."""
    config = dataclasses.replace(CONFIGS[name], **changes)
    model, example = cases.family(name).Model(config, train=True), cases.family(name).example
    inputs = example(config, 4)
    variables = parallel.unbox(jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs)))
    rest = {key: value for key, value in variables.items() if key != "params"}

    def pullback(params: Any) -> Any:
        def loss(params: Any) -> Any:
            out, new = model.apply({"params": params, **rest}, *inputs, mutable=["batch_stats"])
            return jnp.sum(out), new

        return jax.vjp(loss, params, has_aux=True)[1]

    rest = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), rest)
    saved = jax.make_jaxpr(pullback)(variables["params"]).out_avals
    weights = jax.tree.leaves(variables["params"])
    sizes = {"device": -sum(x.size * x.dtype.itemsize for x in weights), "host": 0}
    for x in saved:
        host = x.memory_space == jax.memory.Space.Host
        sizes["host" if host else "device"] += x.size * x.dtype.itemsize
    return sizes["device"], sizes["host"]


@pytest.mark.parametrize("name", CONFIGS)
def test_what_each_policy_keeps(name: str) -> None:
    found = {policy: kept(name, remat=policy) for policy in REMAT}
    device, host = found["offload"]
    assert 0 < device <= found["block"][0]
    assert found["names"] == (device + host, 0)
    assert found["block"][0] < found["dots"][0] < found["none"][0]
    assert found["names"][0] < found["none"][0]
    if name == "transformer":
        # Queries, keys, values and what was attended to: (B, T, D) float32 each, per layer.
        c = CONFIGS[name]
        assert host == 4 * c.num_layers * (4 * 16 * c.dim * 4)
        wider = kept(name, remat="names", remat_names=(*c.remat_names, "mlp"))
        # Their biases, which only computing them again would need, are not kept then.
        assert wider[0] - found["names"][0] == c.num_layers * (4 * 16 - 1) * c.mlp_dim * 4


def test_unknown_names_are_refused() -> None:
    for name, config in CONFIGS.items():
        with pytest.raises(ValueError, match=r"unknown model.remat 'block_'.*nearest: 'block'"):
            dataclasses.replace(config, remat="block_")
        with pytest.raises(ValueError, match=r"unknown model.remat_names 'querry'.*'query'"):
            dataclasses.replace(config, remat_names=("querry",))
        with pytest.raises(ValueError, match=r"model.remat='names' needs model.remat_names"):
            dataclasses.replace(config, remat="names", remat_names=())
        assert cases.family(name).Config().remat == "none"
