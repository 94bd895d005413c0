"""What is particular to residual networks: sizes, versions, shortcuts, starts, and meshes.

The numbers of transformers are in tests/parity/resnets.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn import parallel
from nn.families import resnet
from nn.families.resnet import PRESETS, Config, Model
from tests import golden_store
from tests import parallel_cases as cases
from tests.parity.resnets import outputs

TINY = resnet.tiny()
BASIC = dataclasses.replace(TINY, block="basic")


def initial(config: Config, images: Any) -> Any:
    made = parallel.unbox(jax.jit(Model(config).init)(jax.random.key(0), images))
    return {name: made[name] for name in ("params", "batch_stats")}


@pytest.mark.parametrize(
    "preset, count",
    # He et al. 2016, table 6: 0.27, 0.46, 0.66 and 0.85 million, with colours.
    [("resnet20", 269_722), ("resnet32", 464_154), ("resnet44", 658_586), ("resnet56", 853_018)],
)
def test_cifar_sizes(preset: str, count: int) -> None:
    config = PRESETS[preset]
    images = resnet.example(config, 1)
    made = jax.eval_shape(lambda: Model(config).init(jax.random.key(0), *images))
    leaves = jax.tree.leaves(parallel.unbox(made["params"]))
    assert sum(x.size for x in leaves) == count


def shapes(config: Config, images: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Of the outputs of the stages."""
    key, x = jax.random.key(0), jnp.zeros(images)
    sown = jax.eval_shape(lambda: Model(config).init(key, x, mutable=True))["intermediates"]
    return [sown[f"stage_{i}"][0].shape for i in range(len(config.stages))]


def test_sizes_of_the_stages() -> None:
    """Table 1 of He et al. 2016, and section 4.2."""
    large, small = PRESETS["resnet50"], PRESETS["resnet20"]
    assert shapes(large, (2, 224, 224, 3)) == [
        (2, 56, 56, 256),
        (2, 28, 28, 512),
        (2, 14, 14, 1024),
        (2, 7, 7, 2048),
    ]
    assert shapes(small, (2, 32, 31, 3)) == [(2, 32, 31, 16), (2, 16, 16, 32), (2, 8, 8, 64)]


def test_version_says_which_convolution_has_the_stride() -> None:
    def outputs(version: str) -> list[tuple[int, ...]]:
        config = dataclasses.replace(TINY, version=version)
        _, made = jax.eval_shape(
            lambda: Model(config).init_with_output(
                jax.random.key(0), *resnet.example(config, 1), capture_intermediates=True
            )
        )
        block = made["intermediates"]["stage_1_block_0"]
        return [block[f"conv_{i}"]["__call__"][0].shape[1:3] for i in range(3)]

    assert outputs("v1.5") == [(8, 6), (4, 3), (4, 3)]
    assert outputs("v1") == [(4, 3), (4, 3), (4, 3)]


def test_zero_init_starts_every_block_as_the_identity() -> None:
    images = jax.random.normal(jax.random.key(1), (4, 6, 6, 2))

    def first_stage(blocks: int, zero_init: bool) -> jax.Array:
        config = dataclasses.replace(BASIC, stages=(blocks,), zero_init=zero_init)
        model = Model(config, train=True)
        variables = initial(config, images)
        _, sown = model.apply(variables, images, mutable=["batch_stats", "intermediates"])
        return sown["intermediates"]["stage_0"][0]

    np.testing.assert_array_equal(first_stage(1, True), first_stage(3, True))
    assert float(jnp.abs(first_stage(1, False) - first_stage(1, True)).max()) > 0.1


def test_padded_shortcut_takes_every_second_pixel() -> None:
    config = dataclasses.replace(BASIC, shortcut="pad", zero_init=True)
    images = jax.random.normal(jax.random.key(1), (4, 6, 5, 2))
    variables = initial(config, images)
    _, sown = Model(config, train=True).apply(
        variables, images, mutable=["batch_stats", "intermediates"]
    )
    first, second = (sown["intermediates"][f"stage_{i}"][0] for i in (0, 1))
    np.testing.assert_array_equal(second[..., :8], first[:, ::2, ::2])
    np.testing.assert_array_equal(second[..., 8:], 0)


def gradients(config: Config, variables: Any, images: jax.Array) -> Any:
    def loss(params: Any) -> Any:
        logits, updated = Model(config, train=True).apply(
            {**variables, "params": params}, images, mutable=["batch_stats"]
        )
        return jnp.sum(logits**2), updated

    return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])


def test_recomputation_changes_nothing() -> None:
    (images,) = resnet.example(TINY, 4)
    variables = initial(TINY, images)
    plain = gradients(TINY, variables, images)
    again = gradients(dataclasses.replace(TINY, remat="block"), variables, images)
    assert cases.worst(again, plain)[0] <= 1e-5


def test_evaluation_leaves_the_statistics_alone_and_does_not_mix_examples() -> None:
    (images,) = resnet.example(TINY, 4)
    variables = initial(TINY, images)
    model = jax.jit(Model(TINY).apply)
    alone = [model(variables, images[i : i + 1])[0] for i in range(4)]
    np.testing.assert_allclose(model(variables, images), jnp.stack(alone), atol=1e-5)
    _, updated = gradients(TINY, variables, images)
    changed = jax.tree.map(
        lambda a, b: bool((a != b).all()), variables["batch_stats"], dict(updated)["batch_stats"]
    )
    assert all(jax.tree.leaves(changed))


@pytest.mark.parametrize("name", ["resnets.basic", "resnets.bottleneck"])
def test_float32_stays_close_to_the_record(name: str) -> None:
    record = golden_store.load(name)
    golden_store.compare(outputs(record, jnp.float32), record.outputs, {"": 1e-4, "eval": 2e-6})


# The bottleneck with projections is tests/test_parallel.py's, on every mesh.
VARIANTS = {
    "basic, ImageNet stem, small images": (
        dataclasses.replace(BASIC, stages=(1, 1, 1), stem="imagenet"),
        "tensor4 x data2",
    ),
    "basic, padded shortcut": (
        dataclasses.replace(BASIC, shortcut="pad", stages=(2, 1)),
        "fsdp2 x tensor2 x data2",
    ),
    "bottleneck, version 1, recomputed": (
        dataclasses.replace(TINY, version="v1", remat="block"),
        "fsdp8",
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_mesh_equals_one_device(variant: str) -> None:
    config, mesh = VARIANTS[variant]
    reference = cases.measure("resnet", config, {})
    result = cases.measure("resnet", config, cases.MESHES[mesh])
    cases.assert_same(result, reference)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(block="bottle"), "unknown model.block 'bottle'.*nearest: 'bottleneck'"),
        (dict(version="v2"), "unknown model.version 'v2'"),
        (dict(stages=()), "needs at least one stage"),
        (dict(stages=(2, 0)), "a size of 0"),
        (dict(norm_momentum=1.0), r"model.norm_momentum=1.0: must be in \[0, 1\)"),
    ],
)
def test_wrong_configs_are_explained(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)


def test_images_of_other_channels_are_explained() -> None:
    with pytest.raises(ValueError, match=r"model.in_channels=2: .* got shape \(1, 8, 8, 3\)"):
        jax.eval_shape(Model(TINY).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
