"""What a checkpoint says about itself: shape, dtype and digest of every leaf, and the metadata.

The arrays' own files carry no checksum that a reader checks, so flipped bits and missing chunks
would be restored without a word. The manifest is JSON:

    {"format": 1, "leaves": {"params/block/kernel": {"shape", "dtype", "digest"}, ...},
     "metadata": {...}, "checksum": SHA-256 of the rest}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

FORMAT = 1
_HOST_LIMIT = 2**24  # elements; above, a compiled digest needs less memory


class Damaged(Exception):
    """A finished checkpoint whose files are not what was written."""


def flatten(state: Any) -> dict[str, Any]:
    """Leaves by name, "params/block/kernel", in the order of jax.tree.leaves.

    Raises ValueError, naming the leaf, for names that would collide on disk and for random keys.
    """
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        keys = [jax.tree_util.keystr((key,), simple=True) for key in path]
        name = "/".join(keys)
        for key in keys:
            if not key or "." in key or "/" in key:
                near = key.replace(".", "_").replace("/", "_") or "unnamed"
                raise ValueError(
                    f"{name}: the key {key!r} cannot be saved ('.' and '/' part the names of "
                    f"leaves on disk); nearest: {near!r}"
                )
        if name in leaves:
            raise ValueError(f"{name}: two leaves have this name; rename one")
        leaf = leaf if hasattr(leaf, "shape") else jnp.asarray(leaf)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise ValueError(f"{name}: keep jax.random.key_data(key) in the state, not the key")
        leaves[name] = leaf
    return leaves


def digest(x: Any, xp: Any = jnp) -> Any:
    """32 bits that stand for the content of an array, the same on any mesh.

    The sum, modulo 2^32, of the bits of each element times an odd number made from its global
    position. A single changed element always shows (both maps below are one-to-one), two are
    missed about once in 2^16, the damage of a whole chunk about once in 2^32.

    Args:
      xp: jax.numpy, or numpy: the same value with either.
    """
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = xp.stack([x.real, x.imag])
    if jnp.issubdtype(x.dtype, jnp.floating):
        size = np.dtype(x.dtype).itemsize
        x = x.view({1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[size])
    if np.dtype(x.dtype).itemsize == 8:
        x = x ^ (x >> 32)
    position, stride = xp.zeros(x.shape, np.uint32), 1
    for axis in reversed(range(x.ndim)):
        steps = xp.arange(x.shape[axis], dtype=np.uint32) * np.uint32(stride % 2**32)
        position = position + steps.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
        stride *= x.shape[axis]
    weight = position * np.uint32(2654435761) | np.uint32(1)
    bits = x.astype(np.uint32)
    bits = bits ^ (bits >> 16)  # else flips of two sign bits would cancel
    return xp.sum(bits * weight, dtype=np.uint32)


_compiled_digest = jax.jit(digest)


def digests(leaves: Mapping[str, Any]) -> dict[str, int]:
    """The digest of each array, wherever its parts lie."""
    values = {name: _digest_where_it_lies(x) for name, x in leaves.items()}
    return {name: int(value) for name, value in jax.device_get(values).items()}


def _digest_where_it_lies(x: Any) -> Any:
    if isinstance(x, jax.Array):
        on_host = x.is_fully_addressable and all(d.platform == "cpu" for d in x.devices())
        if not on_host or x.size > _HOST_LIMIT:
            return _compiled_digest(x)
    return digest(np.asarray(x), np)  # spares a compilation for every shape


def make(leaves: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of `leaves`. Raises ValueError or TypeError for metadata that is not JSON."""
    found = digests(leaves)
    body = {
        "format": FORMAT,
        "leaves": {
            name: {"shape": list(x.shape), "dtype": str(x.dtype), "digest": found[name]}
            for name, x in leaves.items()
        },
        "metadata": dict(metadata),
    }
    body = json.loads(json.dumps(body, allow_nan=False))  # what a reader will see
    return {**body, "checksum": _checksum(body)}


def read(path: Path) -> dict[str, Any]:
    """The manifest of the finished step in directory `path`.

    Raises Damaged where it cannot be trusted or is of another format.
    """
    if path.is_symlink():
        raise Damaged("it is a symbolic link, which may point anywhere")
    try:
        manifest = json.loads((path / "manifest" / "metadata").read_text("utf-8"))
        intact = manifest.pop("checksum") == _checksum(manifest)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise Damaged(f"its manifest cannot be read ({one_line(error)})") from error
    if not intact:
        raise Damaged("its manifest was changed")
    if manifest["format"] != FORMAT:
        raise Damaged(f"it is of format {manifest['format']}; this version reads {FORMAT}")
    return manifest


def check_fits(
    stored: Mapping[str, Any], wanted: Mapping[str, Any], where: str, partial: bool
) -> None:
    """Raise ValueError at the first leaf that differs: the arrays' reader would cast in silence.

    Args:
      stored: the leaves of a manifest.
      wanted: arrays or jax.ShapeDtypeStructs by name.
      where: what to call the checkpoint.
      partial: leaves that are not wanted are no error.
    """
    text = f"{where} is of another model: "
    if missing := [name for name in wanted if name not in stored]:
        raise ValueError(f"{text}it lacks {_some(missing)}, which the model wants")
    if not partial and (extra := [name for name in stored if name not in wanted]):
        raise ValueError(f"{text}it holds {_some(extra)}, which the model has not")
    for name, leaf in wanted.items():
        old = f"{stored[name]['dtype']}{stored[name]['shape']}"
        new = f"{leaf.dtype}{list(leaf.shape)}"
        if old != new:
            raise ValueError(f"{text}{name} is stored as {old}, the model wants {new}")


def _some(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _checksum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def one_line(error: BaseException) -> str:
    """An error's text on one line, cut where the libraries add their traces."""
    text = " ".join(str(error).split())
    return f"{text[:300]} ..." if len(text) > 300 else text or type(error).__name__
