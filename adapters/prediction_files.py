"""Predictions as CSV, Parquet or JSON lines, chosen by the suffix; written row by row, and whole or absent."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from . import files
from .csv_files import cell
from .errors import LimpetError, nearest

FORMATS = {".csv": "CSV", ".parquet": "Parquet", ".jsonl": "JSON lines", ".ndjson": "JSON lines"}
_GROUP = 4096  # rows of a Parquet row group

Columns = Mapping[str, type]
"""Column -> str, float, int or bool; every value may also be None."""


class Writer(Protocol):
    """Takes one row after the other."""

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a row; columns that are missing stay empty."""

    def close(self) -> None:
        """Write what is left."""


def check_target(target: Path) -> None:
    """Refuse a file whose suffix says no format.

    Raises:
        LimpetError: Names the known suffixes.
    """
    suffix = target.suffix.lower()
    if suffix not in FORMATS:
        known = ", ".join(f"{key} ({name})" for key, name in FORMATS.items())
        raise LimpetError(
            f"The suffix of {target} says no format that predictions are written in.{nearest(suffix, list(FORMATS))} Known: {known}."
        )
    if target.is_dir():
        raise LimpetError(f"{target} is a folder; name a file for the predictions.")


@contextmanager
def writing(target: Path, columns: Columns) -> Iterator[Writer]:
    """A writer of rows; `target` appears, complete, when the context is left without an error.

    Args:
        target: a file with one of the suffixes of `FORMATS`.
        columns: names and types, in order.
    """
    check_target(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = files.beside(target)
    kinds: dict[str, Callable[[Path, Columns], Writer]] = {"CSV": _Csv, "JSON lines": _JsonLines, "Parquet": _Parquet}
    writer = kinds[FORMATS[target.suffix.lower()]](beside, columns)
    try:
        try:
            yield writer
        finally:
            writer.close()
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


class _Csv:
    """Texts that a spreadsheet would run get an apostrophe; numbers have six digits."""

    def __init__(self, path: Path, columns: Columns) -> None:
        self.columns = columns
        self._file = path.open("w", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file)
        self._writer.writerow(columns)

    def write(self, row: Mapping[str, Any]) -> None:
        self._writer.writerow([self._cell(row.get(name)) for name in self.columns])

    def _cell(self, value: Any) -> Any:
        if isinstance(value, bool):
            return int(value)
        if isinstance(value, float):
            return f"{value:.6f}"
        return cell(value) if isinstance(value, str) else value

    def close(self) -> None:
        self._file.close()


class _JsonLines:
    """One object a line, with every column."""

    def __init__(self, path: Path, columns: Columns) -> None:
        self.columns = columns
        self._file = path.open("w", encoding="utf-8", newline="\n")

    def write(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps({name: row.get(name) for name in self.columns}, ensure_ascii=False) + "\n")

    def close(self) -> None:
        self._file.close()


class _Parquet:
    """A few thousand rows at a time."""

    def __init__(self, path: Path, columns: Columns) -> None:
        import pyarrow
        import pyarrow.parquet

        types = {str: pyarrow.string(), float: pyarrow.float64(), int: pyarrow.int64(), bool: pyarrow.bool_()}
        self._schema = pyarrow.schema([(name, types[kind]) for name, kind in columns.items()])
        self._table = pyarrow.Table
        self._writer = pyarrow.parquet.ParquetWriter(path, self._schema)
        self._rows: list[dict[str, Any]] = []

    def write(self, row: Mapping[str, Any]) -> None:
        self._rows.append({name: row.get(name) for name in self._schema.names})
        if len(self._rows) >= _GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(self._table.from_pylist(self._rows, schema=self._schema))
            self._rows = []

    def close(self) -> None:
        self._flush()
        self._writer.close()
