"""What the tables of formats are made of: rows that say which tensor of a file is which leaf.

A table is read in both directions, so that what is loaded can be saved again as it was. Arrays keep
the dtype that they come with. Nothing here reads or writes a file: the tensors of one are a mapping
from names to arrays, which may be mapped from disk, and a `Leaf` touches only what is asked for.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nn import names

Params = dict[str, Any]
HALF = 2.0**-8  # between neighbours of bfloat16, relative: more than rounding to it changes


@dataclasses.dataclass(frozen=True)
class Row:
    """One tensor of a file, or one per layer, and the leaves of our parameters that it holds.

    file: its name; a name with "{}" stands for the tensors of all layers, which are stacked along
      the first dimension of ours; one with two for those of all experts of all layers.
    ours: path of the leaf; several paths lie side by side along the last dimension of the file.
    shape: of each of those leaves, in one layer.
    matrix: its shape with dimensions merged as in the file, before a transpose; `shape` by default.
    transpose: the file holds (out, in) where ours is (in, out).
    layers: the numbers that the first "{}" takes, where they are not all those of the table: of an
      encoder beside a decoder, of every second layer.

    A kind of row of its own overrides `file_shape`, `split` and `join`.
    """

    file: str
    ours: tuple[str, ...]
    shape: tuple[int, ...]
    matrix: tuple[int, ...] = ()
    transpose: bool = False
    layers: Sequence[int] = ()

    @property
    def stacked(self) -> bool:
        return "{}" in self.file

    @property
    def file_shape(self) -> tuple[int, ...]:
        merged = self.matrix or self.shape
        fused = (*merged[:-1], merged[-1] * len(self.ours))
        return fused[::-1] if self.transpose else fused

    def split(self, tensor: np.ndarray) -> list[np.ndarray]:
        """A tensor of the file as our leaves, in the order of `ours`.

        They are views of it where that can be: of a tensor that is mapped from disk, only what is
        then sliced out of a view is read.
        """
        turned = tensor.T if self.transpose else tensor
        return [part.reshape(self.shape) for part in np.split(turned, len(self.ours), axis=-1)]

    def join(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        """The reverse of `split`, contiguous as a file needs it."""
        merged = [leaf.reshape(self.matrix or self.shape) for leaf in leaves]
        fused = np.concatenate(merged, axis=-1)
        return np.ascontiguousarray(fused.T if self.transpose else fused)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One leaf of ours as it lies in the tensors of a file; `read` reads what it is asked for.

    place: which of the leaves of the row. numbers: of layers and experts, one per stacked
    dimension. tensors: by the names of rows.
    """

    row: Row
    place: int
    numbers: tuple[Sequence[int], ...]
    tensors: Callable[[str], np.ndarray]

    @property
    def shape(self) -> tuple[int, ...]:
        return (*map(len, self.numbers), *self.row.shape)

    def read(self, index: tuple[slice, ...] = (), dtype: Any = None) -> np.ndarray:
        """leaf[index], contiguous, tensor by tensor; slices have a step of 1.

        dtype: of the result; that of the file by default.
        """
        whole = (slice(None),) * len(self.shape)
        pairs = zip((*index, *whole[len(index) :]), self.shape, strict=True)
        ranges = [range(size)[part] for part, size in pairs]
        depth, found = len(self.numbers), None
        inner = tuple(slice(r.start, r.stop) for r in ranges[depth:])
        for at in np.ndindex(*map(len, ranges[:depth])):
            number = [self.numbers[d][ranges[d][i]] for d, i in enumerate(at)]
            tensor = self.tensors(self.row.file.format(*number))
            part = self.row.split(tensor)[self.place][inner]
            if found is None:
                found = np.empty([len(r) for r in ranges], dtype or part.dtype)
            found[at] = part
        return np.empty([len(r) for r in ranges], dtype) if found is None else found


@dataclasses.dataclass(frozen=True)
class Table:
    r"""rows: the tensors of the file; layers: how many there are of those with "{}".

    ignored: pattern of whole names of tensors that a file may hold too and that mean nothing.
    copies: tensors that a file may hold too -> the one that each must be equal to.
    experts: how many there are of those with a second "{}" in each layer.
    legacy: (pattern, replacement) of parts of names, which make older names those of rows:
      ((r"LayerNorm\.gamma$", "LayerNorm.weight"),).
    constants: tensors that are written. Those of a file, which may leave them out, must be the same
      to within the rounding of half precision; if they are `ignored`, they are not looked at.
    """

    rows: tuple[Row, ...]
    layers: int
    ignored: str = ""
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    experts: int = 0
    legacy: tuple[tuple[str, str], ...] = ()
    constants: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def leaves(self, tensors: Mapping[str, np.ndarray]) -> dict[str, Leaf]:
        """Our leaves by path. Reads names and shapes, and the values of copies and constants.

        Raises:
          ValueError: a tensor is missing, unknown or of the wrong shape, a copy is none, or a
            constant is another.
        """
        theirs = renamed(tensors, self.legacy)
        expected = [name for row in self.rows for _, name in self._file_names(row)]
        known = self.copies.keys() | self.constants.keys()
        optional = {n for n in theirs if n in known or re.fullmatch(self.ignored, n)}
        _same_names("tensor", expected, theirs.keys() - (optional - set(expected)))
        for row in self.rows:
            for _, name in self._file_names(row):
                _same_shape("tensor", name, tensors[theirs[name]].shape, row.file_shape)
        for copy, original in self.copies.items():
            if copy in theirs and not np.array_equal(
                tensors[theirs[copy]], tensors[theirs[original]]
            ):
                raise ValueError(
                    f"tensor {copy!r} differs from {original!r}, to which the config ties it; "
                    f"nearest: tie_word_embeddings=false"
                )
        for name in theirs.keys() & self.constants.keys():
            if not re.fullmatch(self.ignored, name):
                _same_values(name, tensors[theirs[name]], self.constants[name])
        return {
            path: Leaf(row, place, self._numbers(row), lambda name: tensors[theirs[name]])
            for row in self.rows
            for place, path in enumerate(row.ours)
        }

    def to_ours(self, tensors: Mapping[str, np.ndarray]) -> Params:
        """Our parameters, layers stacked.

        Raises:
          ValueError: what `leaves` refuses.
        """
        return nest({path: leaf.read() for path, leaf in self.leaves(tensors).items()})

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every leaf of ours, by path."""
        counts = [(row, tuple(map(len, self._numbers(row)))) for row in self.rows]
        return {path: (*count, *row.shape) for row, count in counts for path in row.ours}

    def tensors(self, read: Callable[[str], np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        """The tensors of the file, by name, in the order of the rows, one at a time.

        read: the leaf of a path; each is asked for once, those of a row together.
        """
        for row in self.rows:
            leaves = [read(path) for path in row.ours]
            for index, name in self._file_names(row):
                yield name, row.join([leaf[index] for leaf in leaves])
        yield from self.constants.items()

    def sizes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Of every tensor that `tensors` yields, in that order, the shape and a leaf that has its
        dtype; "" for a constant."""
        return {
            name: (row.file_shape, row.ours[0])
            for row in self.rows
            for _, name in self._file_names(row)
        } | {name: (x.shape, "") for name, x in self.constants.items()}

    def from_ours(self, params: Params) -> dict[str, np.ndarray]:
        """The tensors of the file, from parameters of plain (unboxed) arrays.

        Raises:
          ValueError: a leaf is missing, unknown or of the wrong shape.
        """
        leaves = flatten(params)
        self.check(leaves)
        return dict(self.tensors(lambda path: np.asarray(leaves[path])))

    def check(self, leaves: Mapping[str, Any]) -> None:
        """Raises ValueError for a leaf of ours that is missing, unknown or of the wrong shape."""
        shapes = self.shapes()
        _same_names("parameter", shapes, leaves)
        for path, shape in shapes.items():
            _same_shape("parameter", path, leaves[path].shape, shape)

    def _numbers(self, row: Row) -> tuple[Sequence[int], ...]:
        all_ = (row.layers or range(self.layers), range(self.experts))
        return all_[: row.file.count("{}")]

    def _file_names(self, row: Row) -> list[tuple[tuple[int, ...], str]]:
        """Of each tensor of a row, its index among those that are stacked, and its name."""
        numbers = self._numbers(row)
        indices = itertools.product(*(range(len(n)) for n in numbers))
        return [
            (index, row.file.format(*(n[i] for n, i in zip(numbers, index, strict=True))))
            for index in indices
        ]


def renamed(names_: Iterable[str], legacy: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Today's name of each tensor -> its name in the file.

    legacy: (pattern, replacement), each applied to what those before it made of a name.

    Raises:
      ValueError: two tensors get one name.
    """
    found: dict[str, str] = {}
    for name in names_:
        new = name
        for pattern, replacement in legacy:
            new = re.sub(pattern, replacement, new)
        if new in found:
            raise ValueError(f"tensors {found[new]!r} and {name!r} are both {new!r}; keep one")
        found[new] = name
    return found


def prefix(names_: Iterable[str] | None, base: str) -> str:
    """`base`, such as "transformer.", where it begins a name; "" for a file that leaves it out.

    names_: of the tensors of the file; None for one that we write, with it.
    """
    return base if names_ is None or any(name.startswith(base) for name in names_) else ""


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


def read(
    raw: Mapping[str, Any], defaults: Mapping[str, Any], model_types: Sequence[str] = ()
) -> dict[str, Any]:
    """The content of a config.json with what it leaves out filled in.

    defaults: what the format says of every key that is used, model_type among them. A key that is
      not there (tokens, tasks, versions) says nothing about the numbers and is left out.
    model_types: those that the format reads; that of `defaults` only by default.

    Raises:
      ValueError: another model_type, a quantised file, or a value of another type.
    """
    if "model_type" in raw:
        known = dict.fromkeys(model_types or (defaults["model_type"],))
        names.lookup("model_type", str(raw["model_type"]), known)
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


def _same_values(name: str, tensor: np.ndarray, constant: np.ndarray) -> None:
    _same_shape("tensor", name, tensor.shape, constant.shape)
    gap = float(np.abs(tensor.astype(np.float32) - constant).max())
    if not gap <= HALF * max(float(np.abs(constant).max()), 1.0):
        raise ValueError(
            f"tensor {name!r} is {gap:.1e} off the constant that our model has in its place; "
            "nearest: a file that leaves it out"
        )


def flatten(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """The leaves of nested dicts by path, "blocks/mlp/up/kernel"."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        inside = isinstance(value, Mapping)
        found |= flatten(value, f"{path}{key}/") if inside else {f"{path}{key}": value}
    return found


def nest(leaves: Mapping[str, Any]) -> Params:
    """The reverse of `flatten`."""
    tree: Params = {}
    for path, leaf in leaves.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return tree
