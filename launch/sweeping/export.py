"""The records of a sweep as a table in a file: CSV, or Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.sweeping.store import Record
from nn import names

SKIPPED = ("versions",)  # a column for every package would hide the rest


def flat(record: Record) -> dict[str, Any]:
    """A record as one row: `val.loss` for what lies in val, lists as JSON."""
    row: dict[str, Any] = {}
    for name, value in record.items():
        if name in SKIPPED:
            continue
        entries = (
            {f"{name}.{key}": x for key, x in value.items()} if _is_map(value) else {name: value}
        )
        row |= {
            key: json.dumps(x) if isinstance(x, list | dict) else x for key, x in entries.items()
        }
    return row


def _is_map(value: Any) -> bool:
    return isinstance(value, Mapping)


def write(records: Sequence[Record], path: Path) -> int:
    """Write a row per record, in the format that the name ends with. Returns the number of rows.

    Raises ValueError for another ending, or where Parquet is asked for and pyarrow is missing.
    """
    writer = names.lookup("ending of --to", path.suffix, WRITERS)
    rows = [flat(record) for record in records]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer([{name: row.get(name) for name in columns} for row in rows], columns, path)
    return len(rows)


def _csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)  # None is an empty field


def _parquet(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], path: Path) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(
            f"--to={path}: Parquet needs the extra: pip install 'tessera[parquet]'; nearest: "
            f"{path.with_suffix('.csv')}"
        ) from error
    arrays = {name: _column([row[name] for row in rows]) for name in columns}
    parquet.write_table(pyarrow.table(arrays), path)


def _column(values: list[Any]) -> list[Any]:
    """Of one type: numbers of both kinds become floats, other mixtures text."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        return [value if value is None else float(value) for value in values]
    if len(kinds) > 1:
        return [value if value is None else str(value) for value in values]
    return values


WRITERS = {".csv": _csv, ".parquet": _parquet}
