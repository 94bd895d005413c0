"""The runs that a law is fitted to: one row per run, one column per fact, every cut recorded.

Which parameters count changes the answer: the same runs give N* ~ C^0.37 with all parameters,
C^0.54 with blocks and head, C^0.70 with blocks alone. A `Table` therefore keeps every count that is
known, and a fit looks at it through a `View` of one convention.

Columns (any other column is kept as it is, and may be filtered by):
    N_total, N_nonemb, N_matmul   parameters: all | without embeddings and head | of all matrix
                                  products, the head among them. `N`: counted in a way not told
    D                             training tokens            C       training FLOPs, exact
    L                             final loss, nats per token     group   budget of the run
    run, seed, unique_tokens, steps, batch (tokens), lr, warmup (tokens), experts, granularity, ...
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nn import names

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.int64]

# Convention of counting parameters -> its column, in the order of preference.
CONVENTIONS = {"matmul": "N_matmul", "given": "N", "total": "N_total", "non_embedding": "N_nonemb"}
OPERATORS = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}
_MUST_BE_POSITIVE = (*CONVENTIONS.values(), "D", "C", "L")


@dataclass(frozen=True)
class Excluded:
    """A run that a fit does not see, and why."""

    run: str
    reason: str


@dataclass(frozen=True)
class Table:
    """Rows of runs. `columns`: name -> (rows,) of numbers (float64, NaN = unknown) or of text."""

    columns: Mapping[str, npt.NDArray[Any]]
    excluded: tuple[Excluded, ...] = ()

    @classmethod
    def of(cls, columns: Mapping[str, Sequence[Any] | npt.NDArray[Any]], **called: str) -> Table:
        """A table from columns; `called` says how they name ours: `Table.of(csv, N="params")`.

        Rows whose loss or size is missing, not finite or not positive are excluded, with a reason.

        Raises:
            ValueError: columns of different lengths, a column that is not there, or no loss.
        """
        for ours, theirs in called.items():
            names.lookup(f"column (for {ours})", theirs, columns)
        renamed = {theirs: ours for ours, theirs in called.items()}
        given = {renamed.get(name, name): _column(values) for name, values in columns.items()}
        lengths = {name: len(values) for name, values in given.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns of different lengths: {lengths}")
        if "L" not in given:
            raise ValueError(f"no column L (the loss) among {', '.join(given)}: name it with L=...")
        rows = lengths["L"]
        given.setdefault("run", np.asarray([f"row {i}" for i in range(rows)]))
        given["run"] = np.asarray([_text(v) for v in given["run"]])
        table = cls(given)
        for name in _MUST_BE_POSITIVE:
            if name == "L" or table.has(name):
                values = table.number(name)
                good = np.isfinite(values) & (values > 0)
                table = table.keep(good, f"{name} is not a finite positive number")
        return table

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]], **called: str) -> Table:
        """A table from records, such as lines of a CSV or of a run store; a missing key is NaN."""
        records = list(rows)
        keys = list(dict.fromkeys(key for record in records for key in record))
        return cls.of({key: [record.get(key) for record in records] for key in keys}, **called)

    def __len__(self) -> int:
        return len(self.columns["L"])

    def number(self, name: str) -> Array:
        """A column of numbers, (rows,); raises ValueError for text or a name not there."""
        values = names.lookup("column", name, self.columns)
        if values.dtype.kind != "f":
            raise ValueError(f"column {name!r} holds text such as {values[0]!r}, not numbers")
        return values

    def has(self, name: str) -> bool:
        """Whether a column is there and holds at least one value."""
        values = self.columns.get(name)
        return values is not None and not (values.dtype.kind == "f" and np.isnan(values).all())

    def keep(self, mask: Mask, reason: str) -> Table:
        """Rows where `mask` is True; the others join `excluded` with the reason."""
        out = [Excluded(str(run), reason) for run in self.columns["run"][~mask]]
        kept = {name: values[mask] for name, values in self.columns.items()}
        return Table(kept, (*self.excluded, *out))

    def filter(self, expression: str) -> Table:
        """Rows for which conditions joined by "and" hold: "steps >= 300 and status == done".

        Raises:
            ValueError: a condition that is not COLUMN OPERATOR VALUE, or an unknown column.
        """
        table = self
        for condition in re.split(r"\s+and\s+", expression.strip()):
            found = re.fullmatch(r"(\w+)\s*(<=|>=|==|!=|<|>)\s*(.+)", condition)
            if not found:
                raise ValueError(
                    f"condition {condition!r}: write COLUMN OPERATOR VALUE with an operator out of "
                    f"{' '.join(OPERATORS)}, such as 'steps >= 300'"
                )
            name, sign, text = found.groups()
            values = names.lookup("column", name, table.columns)
            value: float | str = text.strip("\"'")
            if values.dtype.kind == "f":
                value = _number(name, text)
            table = table.keep(OPERATORS[sign](values, value), f"not {condition}")
        return table

    def drop_highest(self, k: int) -> Table:
        """All but the k highest losses."""
        mask = np.ones(len(self), bool)
        mask[np.argsort(-self.number("L"), kind="stable")[:k]] = False
        return self.keep(mask, f"among the {k} highest losses")

    def conventions(self) -> tuple[str, ...]:
        """The ways of counting parameters that this table knows."""
        return tuple(name for name, column in CONVENTIONS.items() if self.has(column))

    def view(self, convention: str | None = None) -> View:
        """The table under one convention (by default the first of `conventions()`).

        Without D, D = C / 6N; without C, C = 6ND: the view says so (`exact_flops`).
        """
        if not len(self):
            reasons = ", ".join(dict.fromkeys(out.reason for out in self.excluded)) or "it is empty"
            raise ValueError(f"no rows left of {len(self.excluded)}: {reasons}")
        if not self.conventions():
            raise ValueError(
                f"no column of sizes among {', '.join(self.columns)}: give one of "
                f"{', '.join(CONVENTIONS.values())}"
            )
        convention = convention or self.conventions()[0]
        column = names.lookup("convention", convention, CONVENTIONS)
        if not self.has(column):
            raise ValueError(
                f"convention {convention!r} needs the column {column}; this table has "
                f"{', '.join(self.conventions())}"
            )
        N = self.number(column)
        if not self.has("D") and not self.has("C"):
            raise ValueError("a table needs D (tokens) or C (training FLOPs); it has neither")
        D = self.number("D") if self.has("D") else self.number("C") / (6 * N)
        C = self.number("C") if self.has("C") else 6 * N * D
        exact = self.has("C") and self.has("D")
        return View(self, convention, N, D, C, self.number("L"), exact)


@dataclass(frozen=True)
class View:
    """A table under one convention of counting parameters; N, D, C, L are (rows,)."""

    table: Table
    convention: str
    N: Array
    D: Array
    C: Array
    L: Array
    exact_flops: bool

    def __len__(self) -> int:
        return len(self.L)

    def column(self, name: str) -> Array:
        """N, D, C or L of this view, or another column of the table."""
        own = {"N": self.N, "D": self.D, "C": self.C, "L": self.L}
        return own[name] if name in own else self.table.number(name)

    def budgets(self) -> Labels:
        """Number of the budget of each row, (rows,), in the order of rising compute.

        The column `group` says it; without one, rows whose FLOPs differ by less than 10 % from
        their neighbour's in the sorted order share a budget.
        """
        if self.table.has("group"):
            labels = np.unique(self.table.columns["group"], return_inverse=True)[1].reshape(-1)
            mean = np.bincount(labels, np.log(self.C)) / np.bincount(labels)
            return np.argsort(np.argsort(mean, kind="stable"), kind="stable")[labels]
        order = np.argsort(self.C, kind="stable")
        jumps = np.diff(np.log(self.C[order])) > np.log(1.1)
        number = np.empty(len(self), np.int64)
        number[order] = np.concatenate([[0], np.cumsum(jumps)])
        return number


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"column {name!r} holds numbers: {text!r} is none, write 300 or 1e9"
        ) from None


def _text(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _column(values: Sequence[Any] | npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Numbers as float64, with NaN for what is missing; anything else as text."""
    try:
        return np.asarray([np.nan if v in ("", None) else v for v in values], np.float64)
    except (TypeError, ValueError):
        return np.asarray(["" if v is None else str(v) for v in values])
