"""Policies of number formats by name."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from launch.run import precision


@pytest.mark.parametrize(
    ("policy", "params", "compute"),
    [
        ("float32", jnp.float32, jnp.float32),
        ("bfloat16", jnp.float32, jnp.bfloat16),
        ("float16", jnp.float32, jnp.float16),
        ("bfloat16_params", jnp.bfloat16, jnp.bfloat16),
    ],
)
def test_formats(policy: str, params: object, compute: object) -> None:
    got = precision.resolve(policy)
    assert (got.name, got.param_dtype, got.compute_dtype) == (policy, params, compute)
    assert (got.loss_scale > 1) == (policy == "float16")
    assert got.stochastic_rounding == (params == jnp.bfloat16)


def test_auto_follows_the_platform() -> None:
    assert precision.resolve("auto").name == "float32"  # the tests run on CPU
    assert precision.resolve("auto", "cpu").name == "float32"
    assert precision.resolve("auto", "gpu").name == "bfloat16"
    assert precision.resolve("auto", "tpu").name == "bfloat16"


@pytest.mark.parametrize("policy", ["float8", "fp16", "", "float"])
def test_others_are_refused_with_what_there_is(policy: str) -> None:
    with pytest.raises(ValueError, match=r"precision\.policy.*choose from auto") as error:
        precision.resolve(policy)
    assert repr(policy) in str(error.value)
