"""Batches by step: the global batch of step s is a pure function of (seed, s).

The step is the only state of the data, so a resumed run, another number of hosts and another mesh
all see the same examples in the same order. Each epoch visits every example once, in an order of
its own; the stream has no gap between epochs. Each host reads only the rows that its devices hold.

`Loader.dataset()` gives the same batches as a Grain `MapDataset`. The loop does not go through it:
Grain's own shuffle walks 0.4 ms per index on a table of 100 rows, its iterators wait for ever on a
read that hangs, and importing it costs half a second.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from launch.data import augment, randomness
from launch.data.prefetch import read_ahead
from launch.data.source import Example, RecordError, Source, stack

if TYPE_CHECKING:
    import grain

Transform = Callable[[Example, np.random.Generator], Example]


class Loader:
    """Batches of the rows of `source` that this process needs.

    Every batch is a dict of arrays with the rows first. Next to the keys of the source it has
    `mask`, 1 for an example and 0 for padding (token data bring theirs, per token), and, with
    mixup, the keys that `augment.mixup` documents.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        seed: int,
        train: bool,
        transform: Transform | None = None,
        shares: Sequence[int] = (0,),
        share_count: int = 1,
        prefetch: int = 2,
        timeout: float = 600.0,
    ) -> None:
        """Take a share of `source`.

        Args:
          batch_size: examples in the global batch.
          train: shuffle and augment; otherwise read in order, once, and pad the last batch.
          transform: called on each training example after the source's own augmentation, with a
            generator that belongs to (seed, place of the example in the stream).
          shares, share_count: which of how many equal shares of the rows to read, ascending.
          prefetch: batches to read ahead, a thread each; 0 reads in the caller's thread.
          timeout: seconds after which a batch that does not come is an error.

        Raises ValueError for sizes that do not fit, naming them.
        """
        if batch_size < 1 or batch_size % share_count:
            nearest = max(round(batch_size / share_count), 1) * share_count
            raise ValueError(
                f"data.batch_size is {batch_size}: it must be a positive multiple of the "
                f"{share_count} shares in which processes read data; nearest: {nearest}"
            )
        if not shares or sorted({*shares} & {*range(share_count)}) != list(shares):
            raise ValueError(
                f"shares {list(shares)} must be different ones of 0 to {share_count - 1}, ascending"
            )
        if prefetch < 0:
            raise ValueError(f"data.prefetch is {prefetch}: it must be at least 0; nearest: 0")
        if not len(source):
            raise ValueError(f"{_where(source)} has no examples")
        self.source = source
        self.batch_size = batch_size
        self.seed = seed
        self.train = train
        self.transform = transform
        size = batch_size // share_count
        self.rows = np.concatenate([np.arange(i * size, (i + 1) * size) for i in shares])
        self.prefetch = prefetch
        self.timeout = timeout
        self.mixup = source.mixup if train else 0.0
        if self.mixup:
            augment.check_mixup(self.mixup, source.spec, size)

    @property
    def epoch_batches(self) -> int:
        """Batches in an evaluation epoch: the same number on every host."""
        return -(-len(self.source) // self.batch_size)

    def batch(self, step: int) -> Example:
        """This process's rows of the batch of `step`; without `train`, of the step-th in order.

        Raises RecordError, naming the record, where one cannot be read.
        """
        return self._training_batch(step) if self.train else self._ordered_batch(step)

    def iterate(self, start_step: int = 0) -> Generator[Example, None, None]:
        """The batches from `start_step` on, read ahead: without end when `train`.

        Close it, or let it go, to stop its threads. Raises TimeoutError for a read that hangs.
        """
        end = 2**62 if self.train else self.epoch_batches
        return self._ahead(self.batch, range(start_step, end), "step")

    def epoch(self) -> Generator[Example, None, None]:
        """Each example once, in order, without augmentation; the last batch padded, mask 0."""
        return self._ahead(self._ordered_batch, range(self.epoch_batches), "evaluation batch")

    def fingerprint(self) -> dict[str, Any]:
        """What determines the stream of batches, as JSON values; see `check_fingerprint`."""
        return {**self.source.fingerprint(), "seed": self.seed, "batch_size": self.batch_size}

    def dataset(self) -> grain.MapDataset[Example]:
        """The batches as a Grain dataset indexed by step, for Grain's iterators and tools."""
        import grain  # imports jax, which a process that only reads data has no use for

        length = 2**62 if self.train else self.epoch_batches
        return grain.MapDataset.range(length).map(self.batch)

    def _ahead(
        self, read: Callable[[int], Example], keys: range, what: str
    ) -> Generator[Example, None, None]:
        name = f"{_where(self.source)}: the batch of {what}"
        return read_ahead(read, keys, self.prefetch, self.timeout, name)

    def _training_batch(self, step: int) -> Example:
        if step < 0:
            raise IndexError(f"there is no step {step}")
        positions = step * self.batch_size + self.rows
        indices = randomness.shuffled(self.seed, positions, len(self.source))
        if self.source.augments or self.transform:
            batch = self._stacked(indices, positions)
        else:
            batch = self._stored(indices)
        batch = _with_mask(batch, len(self.rows))
        if self.mixup:
            batch = augment.mixup(batch, self.mixup, self.seed, step, self.rows, self.batch_size)
        return batch

    def _ordered_batch(self, number: int) -> Example:
        if not 0 <= number < self.epoch_batches:
            raise IndexError(f"{_where(self.source)} has no batch {number}: {self.epoch_batches}")
        indices = number * self.batch_size + self.rows
        indices = indices[indices < len(self.source)]
        if len(indices):
            batch = _with_mask(self._stored(indices), len(indices))
        else:  # the data end before this host's rows: one record gives the shapes of the padding
            batch = _with_mask(self._stored(np.zeros(1, np.int64)), 1)
        missing = len(self.rows) - len(indices)
        return {key: _padded(array[: len(indices)], missing) for key, array in batch.items()}

    def _stored(self, indices: np.ndarray) -> Example:
        """Records as they are; read one by one when that fails, to name the bad one."""
        try:
            return self.source.read(indices.tolist())
        except Exception:
            return self._stacked(indices, None)

    def _stacked(self, indices: np.ndarray, positions: np.ndarray | None) -> Example:
        examples = []
        for row, index in enumerate(indices.tolist()):
            try:
                examples.append(self._example(index, None if positions is None else positions[row]))
            except Exception as error:
                raise RecordError(
                    f"{_where(self.source)}: record {index} cannot be read: "
                    f"{type(error).__name__}: {error}"
                ) from error
        try:
            return stack(examples)
        except ValueError as error:
            shapes = [_shapes(example) for example in examples]
            odd = next(row for row, shape in enumerate(shapes) if shape != shapes[0])
            raise RecordError(
                f"{_where(self.source)}: record {indices[odd]} has {shapes[odd]}, "
                f"record {indices[0]} has {shapes[0]}"
            ) from error

    def _example(self, index: int, position: int | None) -> Example:
        if position is None:
            return self.source[index]
        generator = randomness.generator(self.seed, "augment", int(position))
        example = self.source.augmented(index, generator)
        return self.transform(example, generator) if self.transform else example


def check_fingerprint(stored: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Refuse to go on with other data than a run began with.

    Raises ValueError, one line that names every entry that changed with its two values.
    """
    before, now = _flat(stored), _flat(current)
    absent = dict.fromkeys([*before, *now], "absent")
    before, now = absent | before, absent | now
    changes = [
        f"{key} was {before[key]}, is {now[key]}"
        for key in sorted(absent)
        if before[key] != now[key]
    ]
    if changes:
        raise ValueError(
            f"the data are not those this run began with: {'; '.join(changes)}: "
            "restore them, or start in a new work directory"
        )


def _flat(fingerprint: Mapping[str, Any]) -> dict[str, str]:
    """Dotted key to JSON text, so that what was stored as JSON equals what was not."""
    result: dict[str, str] = {}
    for key, value in fingerprint.items():
        if isinstance(value, Mapping):
            result |= {f"{key}.{inner}": text for inner, text in _flat(value).items()}
        else:
            result[key] = json.dumps(value, sort_keys=True)
    return result


def _where(source: Source) -> str:
    return f"data set {source.spec.name}, split {source.split}"


def _shapes(example: Example) -> str:
    return ", ".join(f"{key} {np.shape(value)}" for key, value in sorted(example.items()))


def _with_mask(batch: Example, rows: int) -> Example:
    return batch if "mask" in batch else {**batch, "mask": np.ones(rows, np.float32)}


def _padded(array: np.ndarray, missing: int) -> np.ndarray:
    """`array` with `missing` rows of zeros after it."""
    if not missing:
        return array
    return np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])
