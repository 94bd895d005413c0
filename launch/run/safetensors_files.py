"""Directories of `model.safetensors`, or of shards and their index, read and written in place.

A file is 8 bytes that give the length of a header, the header, JSON that says of each tensor which
dtype, shape and bytes it has, and the tensors, one after another without holes. What is read is
mapped from disk, so that a slice of a tensor reads no more than its pages; what is written is
written tensor by tensor. Neither holds a file in memory. Pickles are never opened.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from nn import names

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.bin.index.json")
DTYPES: Mapping[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "F8_E4M3": jnp.float8_e4m3fn,
    "F8_E5M2": jnp.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
CODES = {np.dtype(dtype): code for code, dtype in DTYPES.items()}
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a tensor lies: its file, and in it dtype, shape and first byte."""

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of a directory by name, each mapped from its file while it is in use.

    Raises:
      FileNotFoundError: no directory, no safetensors in it, or a shard that is missing.
      ValueError: a damaged file or index, only pickles, a dtype that NumPy does not have.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory).expanduser()
        self.places: dict[str, Place] = {}
        if (self.directory / SINGLE).is_file():
            self.places = _places(self.directory / SINGLE)
        elif (self.directory / INDEX).is_file():
            self._read_shards(self.directory / INDEX)
        else:
            raise _nothing_to_read(self.directory)

    def _read_shards(self, index: Path) -> None:
        content = read_json(index)
        shard_of = content["weight_map"] if "weight_map" in content else None
        if not isinstance(shard_of, dict) or not shard_of:
            raise ValueError(f"{index}: has no weight_map, which says in which file each tensor is")
        shards: dict[str, dict[str, Place]] = {}
        for shard in sorted(set(map(str, shard_of.values()))):
            path = index.parent / shard
            if Path(shard).name != shard:
                raise ValueError(f"{index}: {shard!r} is no name of a file beside it")
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing, which {index.name} names")
            shards[shard] = _places(path)
        for name, shard in shard_of.items():
            if name not in shards[shard]:
                raise ValueError(f"{index}: tensor {name!r} is not in {shard}")
            self.places[name] = shards[shard][name]

    def __getitem__(self, name: str) -> np.ndarray:
        at = self.places[name]
        if 0 in at.shape:
            return np.zeros(at.shape, at.dtype)
        # One mapping per use: its pages are given back with the last view of it.
        return np.asarray(np.memmap(at.path, at.dtype, "r", at.offset, at.shape))

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ValueError when there is none."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds a {type(found).__name__}, not an object")
    return found


def _places(path: Path) -> dict[str, Place]:
    """What the header of a file says, once the package has found it sound."""
    try:
        with safe_open(path, framework="numpy"):
            pass
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged or cut short: {error}; nearest: copy it again"
        ) from error
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            near = names.nearest(entry["dtype"], DTYPES)
            raise ValueError(
                f"{path}: tensor {name!r} is of dtype {entry['dtype']}, which is not read: choose "
                f"from {', '.join(DTYPES)}" + (f"; nearest: {near}" if near else "")
            )
        dtype = np.dtype(DTYPES[entry["dtype"]])
        offset = 8 + length + entry["data_offsets"][0]
        found[name] = Place(path, dtype, tuple(entry["shape"]), offset)
    return found


def _nothing_to_read(directory: Path) -> Exception:
    if not directory.is_dir():
        return FileNotFoundError(f"{directory}: there is no such directory")
    pickles = sorted(path.name for kind in PICKLES for path in directory.glob(kind))
    if pickles:
        return ValueError(
            f"{directory} holds {pickles[0]} and no safetensors: a pickle can run any code when it "
            f"is opened and is never opened here; nearest: load it where you trust it and save it "
            f"again as safetensors, with transformers' save_pretrained"
        )
    others = sorted(path.name for path in directory.glob("*.safetensors"))
    hint = f" (it holds {', '.join(others[:3])})" if others else ""
    return FileNotFoundError(f"{directory}: neither {SINGLE} nor {INDEX} is there{hint}")


def parse_size(text: str) -> int:
    """Bytes of a size such as "5GB", "500 MB" or "1000000"; ValueError for anything else."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?B?)", text.strip(), re.IGNORECASE)
    unit = match[2].upper() if match else "?"
    unit = unit if unit in UNITS else f"{unit}B"
    size = int(float(match[1]) * UNITS[unit]) if match else 0
    if size < 1:
        raise ValueError(f"--shard-size={text}: must be bytes, such as 5GB or 500MB; nearest: 5GB")
    return size


def check_target(directory: str | Path) -> Path:
    """The place of a directory that is to be written.

    Raises:
      FileExistsError: something is there already; NotADirectoryError: a file is in the way.
    """
    path = Path(directory).expanduser().absolute()
    if path.is_dir() and any(path.iterdir()):
        raise FileExistsError(f"{path} is not empty: name a directory that is not there yet")
    place = next(p for p in (path, *path.parents) if p.exists() or p.is_symlink())
    if not place.is_dir():
        raise NotADirectoryError(f"{path}: {place} is a file; name a directory")
    return path


Sizes = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]


def write(
    directory: str | Path,
    config: Mapping[str, Any],
    sizes: Sizes,
    tensors: Iterable[tuple[str, np.ndarray]],
    shard_size: int,
    beside: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[str]:
    """A directory of config.json and tensors, whole or not at all. Returns the tensors' files.

    Args:
      beside: content of more JSON files, by name.
      sizes: shape and dtype of every tensor, in the order in which `tensors` yields them.
      shard_size: bytes; a file holds as many tensors in a row as fit, and at least one.
    Raises:
      what `check_target` raises; ValueError: a tensor is not as `sizes` says.
    """
    target = check_target(directory)
    target.parent.mkdir(parents=True, exist_ok=True)
    shards = _plan(sizes, shard_size)
    with _appearing(target) as folder:
        for name, content in {"config.json": config, **(beside or {})}.items():
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
        supply = iter(tensors)
        for file, members in shards.items():
            wanted = {name: sizes[name] for name in members}
            _write_file(folder / file, wanted, itertools.islice(supply, len(members)))
        if len(shards) > 1:
            total = sum(_bytes(size) for size in sizes.values())
            shard_of = {name: file for file, members in shards.items() for name in members}
            index = {"metadata": {"total_size": total}, "weight_map": shard_of}
            (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    return list(shards)


def _bytes(size: tuple[tuple[int, ...], np.dtype[Any]]) -> int:
    return math.prod(size[0]) * size[1].itemsize


def _plan(sizes: Sizes, limit: int) -> dict[str, list[str]]:
    """The tensors of every file."""
    shards: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if not shards or _bytes(size) > room:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= _bytes(size)
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    count = len(shards)
    return {f"model-{i:05}-of-{count:05}.safetensors": x for i, x in enumerate(shards, 1)}


def _write_file(path: Path, sizes: Sizes, tensors: Iterable[tuple[str, np.ndarray]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # readers of torch look for it
    end = 0
    # Wide elements first, so that all are aligned: the format has no padding between tensors.
    for name in sorted(sizes, key=lambda name: -sizes[name][1].itemsize):
        shape, dtype = sizes[name]
        start, end = end, end + _bytes(sizes[name])
        entry = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        header[name] = entry
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, (shape, dtype)), (given, x) in zip(sizes.items(), tensors, strict=True):
            if (given, x.shape, x.dtype) != (name, shape, dtype):
                found = f"{given!r}, {x.dtype}{list(x.shape)}"
                raise ValueError(f"tensor {name!r}, {dtype}{list(shape)}: got {found}")
            file.seek(8 + len(text) + header[name]["data_offsets"][0])
            file.write(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A directory that becomes `target` when all went well, and is gone when not."""
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield folder
        mask = os.umask(0)
        os.umask(mask)
        folder.chmod(0o777 & ~mask)
        os.replace(folder, target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
