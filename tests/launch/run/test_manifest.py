"""The manifest: a digest that is the same everywhere and sees damage, names that do not collide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from launch.run import manifest


@jax.tree_util.register_pytree_with_keys_class
class Colliding:
    """A node whose two children have the same name."""

    def tree_flatten_with_keys(self) -> Any:
        key = jax.tree_util.DictKey("1")
        return ((key, 1.0), (key, 2.0)), None

    @classmethod
    def tree_unflatten(cls, aux: None, children: Any) -> Colliding:
        return cls()


@pytest.mark.parametrize(
    "state, text",
    [
        ({"a.b": 1.0, "a": {"b": 0.0}}, r"a\.b: the key 'a\.b' .*nearest: 'a_b'"),
        ({"x": {"a/b": 1.0}}, "x/a/b: the key 'a/b'"),
        ({"x": Colliding()}, "x/1: two leaves have this name"),
        ({"key": jax.random.key(0)}, "key: keep jax.random.key_data"),
    ],
)
def test_leaves_that_cannot_be_saved(state: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        manifest.flatten(state)


def test_digest_is_the_same_everywhere() -> None:
    dtypes = ["float32", "bfloat16", "float8_e4m3fn", "int8", "int32", "bool", "complex64", "int4"]
    draw = np.random.default_rng(0).standard_normal((8, 3, 16)) * 9
    leaves = {dtype: jnp.asarray(draw).astype(dtype) for dtype in dtypes}
    expected = {dtype: int(manifest.digest(np.asarray(x), np)) for dtype, x in leaves.items()}
    compiled = jax.jit(lambda tree: jax.tree.map(manifest.digest, tree))
    mesh = jax.make_mesh((2, 4), ("a", "b"), (AxisType.Auto,) * 2)
    placed = jax.device_put(leaves, NamedSharding(mesh, PartitionSpec("b", None, "a")))
    assert jax.device_get(compiled(placed)) == expected
    assert manifest.digests(placed) == expected


def test_digest_sees_every_bit_two_signs_and_order() -> None:
    x = np.random.default_rng(1).standard_normal((4, 5)).astype(np.float32)
    plain = manifest.digest(x, np)

    def flipped(*places: tuple[int, int]) -> int:
        y = x.copy()
        for index, bit in places:
            y.reshape(-1).view(np.uint32)[index] ^= np.uint32(1 << bit)
        return int(manifest.digest(y, np))

    single = {flipped((i, bit)) for i in range(x.size) for bit in range(32)}
    signs = {flipped((i, 31), (j, 31)) for i in range(x.size) for j in range(i)}
    assert plain not in single | signs
    assert manifest.digest(x[::-1], np) != plain


def test_a_manifest_is_json_that_a_person_can_read(tmp_path: Path) -> None:
    state = {"params": {"kernel": np.ones((2, 3), np.float32)}, "optimizer": (jnp.int32(3), {})}
    made = manifest.make(manifest.flatten(state), {"seed": 1})
    path = tmp_path / "manifest" / "metadata"
    path.parent.mkdir()
    path.write_text(json.dumps(made))
    found = manifest.read(tmp_path)
    assert list(found["leaves"]) == ["optimizer/0", "params/kernel"]
    kernel = found["leaves"]["params/kernel"]
    assert kernel["shape"] == [2, 3] and kernel["dtype"] == "float32"
    assert found["metadata"] == {"seed": 1}
    with pytest.raises(ValueError, match="not JSON compliant"):
        manifest.make({}, {"loss": float("nan")})


@pytest.mark.parametrize(
    "change, text",
    [
        ({"metadata": {"seed": 2}}, "its manifest was changed"),
        ({"checksum": None}, "its manifest was changed"),
        (None, "its manifest cannot be read"),
    ],
)
def test_a_changed_manifest_is_seen(tmp_path: Path, change: Any, text: str) -> None:
    path = tmp_path / "manifest" / "metadata"
    path.parent.mkdir()
    made = manifest.make({}, {"seed": 1})
    path.write_text(json.dumps(made | change) if change else "[]")
    with pytest.raises(manifest.Damaged, match=text):
        manifest.read(tmp_path)


def test_a_manifest_of_another_format_is_said_to_be_one(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "manifest" / "metadata"
    path.parent.mkdir()
    monkeypatch.setattr(manifest, "FORMAT", 99)
    path.write_text(json.dumps(manifest.make({}, {})))
    monkeypatch.setattr(manifest, "FORMAT", 1)
    with pytest.raises(manifest.Damaged, match="it is of format 99; this version reads 1"):
        manifest.read(tmp_path)
