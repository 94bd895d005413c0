"""What a `sweep()` is made of: lists of cells, from grids or drawn, and ways to join them.

A cell maps dotted keys of the config to the values that one run sets beyond its experiment:

    def sweep() -> list[sweeps.Cell]:
        models = sweeps.grid({"model.features": [(32,), (64,), (128,)]})
        rates = sweeps.quasi_random(7, {"optimizer.learning_rate": sweeps.log_uniform(1e-4, 1e-1)})
        return sweeps.derive(sweeps.product(models, rates), longer_when_slow)

Lists of cells are added with `+` and filtered by a comprehension. What is drawn depends on the seed
alone and has four significant digits.
"""

import itertools
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Cell = dict[str, Any]
Space = Mapping[str, Callable[[float], Any]]  # key -> value for a number of [0, 1)


def grid(values: Mapping[str, Iterable[Any]]) -> list[Cell]:
    """Every combination of the values; those of the last key change fastest."""
    keys, columns = list(values), list(values.values())
    return [dict(zip(keys, row, strict=True)) for row in itertools.product(*columns)]


def product(*sweeps: Iterable[Cell]) -> list[Cell]:
    """Every cell of each sweep joined with every cell of the others.

    Raises ValueError where two of them set one key, which `derive` may do.
    """
    return [_joined(cells) for cells in itertools.product(*sweeps)]


def zipped(*sweeps: Iterable[Cell]) -> list[Cell]:
    """The first cells joined, the second ones joined, and so on.

    Raises ValueError where two of them set one key, or have different lengths.
    """
    lists = [list(cells) for cells in sweeps]
    if len({len(cells) for cells in lists}) > 1:
        lengths = ", ".join(str(len(cells)) for cells in lists)
        raise ValueError(f"zipped sweeps have {lengths} cells: they must have the same number")
    return [_joined(cells) for cells in zip(*lists, strict=True)]


def _joined(cells: Sequence[Cell]) -> Cell:
    joined: Cell = {}
    for cell in cells:
        if twice := sorted(joined.keys() & cell.keys()):
            raise ValueError(f"{twice[0]!r} is set by two of the sweeps that are joined")
        joined |= cell
    return joined


def derive(cells: Iterable[Cell], rule: Callable[[Cell], Cell]) -> list[Cell]:
    """Each cell with what the rule makes of it: keys that depend on others, or only sometimes set.

    The rule returns further keys, or other values of those that are set, or {}.
    """
    return [cell | rule(cell) for cell in cells]


def uniform(low: float, high: float) -> Callable[[float], float]:
    return lambda u: _short(low + u * (high - low))


def log_uniform(low: float, high: float) -> Callable[[float], float]:
    """Uniform in the logarithm; both bounds positive."""
    return lambda u: _short(low * (high / low) ** u)


def whole(low: int, high: int, multiple: int = 1) -> Callable[[float], int]:
    """Whole multiples from low to high, both among them."""
    return lambda u: (
        (low // multiple + int(u * (high // multiple - low // multiple + 1))) * multiple
    )


def log_whole(low: int, high: int, multiple: int = 1) -> Callable[[float], int]:
    """Whole multiples from low to high, uniform in the logarithm but for the rounding."""
    return lambda u: max(round(low * (high / low) ** u / multiple), 1) * multiple


def choice(*values: Any) -> Callable[[float], Any]:
    return lambda u: values[int(u * len(values))]


def _short(x: float) -> float:
    return float(f"{x:.4g}")


def independent(count: int, space: Space, seed: int = 0) -> list[Cell]:
    """`count` cells, each key drawn by itself."""
    generator = random.Random(seed)  # of whose methods only `random` is the same in every version
    return [{key: value(generator.random()) for key, value in space.items()} for _ in range(count)]


def quasi_random(count: int, space: Space, seed: int = 0) -> list[Cell]:
    """`count` cells that cover the space evenly, in every key and together: a Halton sequence.

    More draws of the same seed begin with the fewer ones. Good for up to about ten keys.
    """
    points = halton(count, len(space), seed)
    return [
        {key: value(u) for (key, value), u in zip(space.items(), point, strict=True)}
        for point in points
    ]


def halton(count: int, dimensions: int, seed: int | None = 0) -> list[tuple[float, ...]]:
    """Points of [0, 1)^dimensions (Halton 1960), digits permuted at random (Owen 2017).

    Dimension i is the radical inverse of 0, 1, 2 ... in the i-th prime base: among any b^k that
    follow on a multiple of b^k, one falls into each of b^k equal intervals.

    Args:
      seed: of the permutations, one per digit, which break the correlation between large bases;
        None: the plain sequence.
    """
    columns = [_inverses(count, base, seed) for base in itertools.islice(_primes(), dimensions)]
    return list(zip(*columns, strict=True))


def _inverses(count: int, base: int, seed: int | None) -> list[float]:
    generator = random.Random(None if seed is None else f"{seed} {base}")
    points = [0.0] * count
    for place in range(1, math.ceil(40 / math.log2(base)) + 1):  # finer than any draw needs
        digits = list(range(base))
        if seed is not None:
            digits.sort(key=lambda _: generator.random())
        for i in range(count):
            points[i] += digits[i // base ** (place - 1) % base] / base**place
    return points


def _primes() -> Iterable[int]:
    return (n for n in itertools.count(2) if all(n % d for d in range(2, math.isqrt(n) + 1)))
