"""What the tables of decoder formats share: rows that say which tensor of a file is which leaf.

A table is read in both directions, so that what is loaded can be saved again as it was. Arrays keep
the dtype that they come with. Nothing here reads or writes a file.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nn import names

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Row:
    """One tensor of a file, or one per layer, and the leaves of our parameters that it holds.

    file: its name; a name with "{}" stands for the tensors of all layers, which are stacked along
      the first dimension of ours; one with two for those of all experts of all layers.
    ours: path of the leaf; several paths lie side by side along the last dimension of the file.
    shape: of each of those leaves, in one layer.
    matrix: its shape with dimensions merged as in the file, before a transpose; `shape` by default.
    transpose: the file holds (out, in) where ours is (in, out).
    """

    file: str
    ours: tuple[str, ...]
    shape: tuple[int, ...]
    matrix: tuple[int, ...] = ()
    transpose: bool = False

    @property
    def stacked(self) -> bool:
        return "{}" in self.file

    @property
    def file_shape(self) -> tuple[int, ...]:
        merged = self.matrix or self.shape
        fused = (*merged[:-1], merged[-1] * len(self.ours))
        return fused[::-1] if self.transpose else fused

    def split(self, tensor: np.ndarray) -> list[np.ndarray]:
        """A tensor of the file as views of the shape of our leaves, in the order of `ours`."""
        turned = tensor.T if self.transpose else tensor
        return [part.reshape(self.shape) for part in np.split(turned, len(self.ours), axis=-1)]

    def join(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        """The reverse of `split`, contiguous as a file needs it."""
        merged = [leaf.reshape(self.matrix or self.shape) for leaf in leaves]
        fused = np.concatenate(merged, axis=-1)
        return np.ascontiguousarray(fused.T if self.transpose else fused)


@dataclasses.dataclass(frozen=True)
class Table:
    """rows: the tensors of the file; layers: how many there are of those with "{}".

    ignored: pattern of tensors that a file may hold too and that mean nothing.
    copies: tensors that a file may hold too -> the one that each must be equal to.
    experts: how many there are of those with a second "{}" in each layer.
    """

    rows: tuple[Row, ...]
    layers: int
    ignored: str = ""
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    experts: int = 0

    def to_ours(self, tensors: Mapping[str, np.ndarray]) -> Params:
        """Our parameters, layers stacked. Each tensor is asked for once, one at a time.

        Raises:
          ValueError: a tensor is missing, unknown or of the wrong shape, or a copy is none.
        """
        expected = [name for row in self.rows for _, name in self._file_names(row)]
        optional = {n for n in tensors if n in self.copies or re.fullmatch(self.ignored, n)}
        _same_names("tensor", expected, tensors.keys() - (optional - set(expected)))
        found: dict[str, np.ndarray] = {}
        for row in self.rows:
            for index, name in self._file_names(row):
                tensor = tensors[name]
                _same_shape("tensor", name, tensor.shape, row.file_shape)
                for path, part in zip(row.ours, row.split(tensor), strict=True):
                    if not row.stacked:
                        found[path] = np.ascontiguousarray(part)
                        continue
                    if path not in found:
                        found[path] = np.empty((*self._counts(row), *row.shape), part.dtype)
                    found[path][index] = part
        for copy, original in self.copies.items():
            if copy in tensors and not np.array_equal(tensors[copy], tensors[original]):
                raise ValueError(
                    f"tensor {copy!r} differs from {original!r}, to which the config ties it; "
                    f"nearest: tie_word_embeddings=false"
                )
        return _nest(found)

    def from_ours(self, params: Params) -> dict[str, np.ndarray]:
        """The tensors of the file, from parameters of plain (unboxed) arrays.

        Raises:
          ValueError: a leaf is missing, unknown or of the wrong shape.
        """
        leaves = {path: np.asarray(leaf) for path, leaf in _flatten(params)}
        _same_names("parameter", [path for row in self.rows for path in row.ours], leaves)
        found = {}
        for row in self.rows:
            shape = (*self._counts(row), *row.shape)
            for path in row.ours:
                _same_shape("parameter", path, leaves[path].shape, shape)
            for index, name in self._file_names(row):
                found[name] = row.join([leaves[path][index] for path in row.ours])
        return found

    def _counts(self, row: Row) -> tuple[int, ...]:
        return (self.layers, self.experts)[: row.file.count("{}")]

    def _file_names(self, row: Row) -> list[tuple[tuple[int, ...], str]]:
        """Of each tensor of a row, its index among those that are stacked, and its name."""
        indices = itertools.product(*map(range, self._counts(row)))
        return [(index, row.file.format(*index)) for index in indices]


def dense(file: str, ours: str, shape: tuple[int, ...], inputs: int, bias: str = "") -> list[Row]:
    """Rows of a torch `Linear`, FILE.weight (out, in) and, with `bias`, FILE.bias (out,).

    shape: of our kernel, whose first `inputs` dimensions are the input.
    bias: path of our bias.
    """
    into, out = math.prod(shape[:inputs]), math.prod(shape[inputs:])
    rows = [Row(f"{file}.weight", (ours,), shape, (into, out), transpose=True)]
    if bias:
        rows.append(Row(f"{file}.bias", (bias,), shape[inputs:], (out,)))
    return rows


def read(raw: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a config.json with what it leaves out filled in.

    defaults: what the format says of every key that is used, model_type among them. A key that is
      not there (tokens, tasks, versions) says nothing about the numbers and is left out.

    Raises:
      ValueError: another model_type, a quantised file, or a value of another type.
    """
    if "model_type" in raw:
        names.lookup("model_type", str(raw["model_type"]), {defaults["model_type"]: None})
    if "quantization_config" in raw and raw["quantization_config"] is not None:
        raise ValueError("quantization_config: quantised tensors are not read; use a float file")
    values = dict(defaults) | {key: raw[key] for key in raw if key in defaults}
    for key, default in defaults.items():
        kinds = (int, float) if isinstance(default, float) else (type(default),)
        number = not isinstance(default, bool) and isinstance(values[key], bool)
        if default is not None and (number or not isinstance(values[key], kinds)):
            raise ValueError(f"{key}={values[key]!r}: must be of type {kinds[-1].__name__}")
    return values


def require(what: str, **values: tuple[Any, Any]) -> None:
    """Raises ValueError for the first `key=(value, wanted)` that are not equal."""
    for key, (value, wanted) in values.items():
        if value != wanted:
            raise ValueError(f"{key}={value!r}: {what} does not have that; nearest: {wanted!r}")


def _same_names(kind: str, expected: Iterable[str], given: Iterable[str]) -> None:
    wanted, got = set(expected), set(given)
    for problem, names_, others in (
        ("missing", wanted - got, got - wanted),
        ("unknown", got - wanted, wanted - got or wanted),
    ):
        if names_:
            first = min(names_)
            more = f" and {len(names_) - 1} more" if len(names_) > 1 else ""
            guess = names.nearest(first, others)
            hint = f"; nearest: {guess!r}" if guess else ""
            raise ValueError(f"{problem} {kind} {first!r}{more}{hint}")


def _same_shape(kind: str, name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if tuple(shape) != wanted:
        raise ValueError(f"{kind} {name!r} has shape {tuple(shape)}; the config makes it {wanted}")


def _flatten(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{path}{key}/")
        else:
            yield f"{path}{key}", value


def _nest(leaves: Mapping[str, np.ndarray]) -> Params:
    tree: Params = {}
    for path, leaf in leaves.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return tree
