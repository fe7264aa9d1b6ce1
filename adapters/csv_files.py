"""CSV files that spreadsheets and programs both read rightly. Standard library only."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import RunError

PREDICTIONS = ("path", "label", "predicted", "probability", "correct", "space")
PER_CLASS = ("space", "class", "text", "images", "accuracy", "zero_shot_accuracy")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def cell(value: object) -> str:
    """Return the text of a cell: one that a spreadsheet would run as a formula gets a leading apostrophe."""
    text = "" if value is None else f"{value:.6f}" if isinstance(value, float) else str(value)
    if not text.startswith(_FORMULA) and not (text.startswith("'") and text[1:2] in _FORMULA):
        return text
    try:
        float(text)
    except ValueError:
        return "'" + text
    return text


def value(text: str) -> str:
    """Undo `cell`."""
    plain = text.lstrip("'")
    return text[1:] if text.startswith("'") and plain.startswith(_FORMULA) else text


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Mapping[str, Any] | Sequence[Any]]) -> None:
    """Write a CSV file (UTF-8) atomically; a mapping's missing keys give empty cells."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        with beside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            for row in rows:
                values = [row.get(key) for key in header] if isinstance(row, Mapping) else row
                writer.writerow([cell(item) for item in values])
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def read_rows(path: Path, required: Sequence[str] = ()) -> list[dict[str, str]]:
    """Read a CSV file written here; an empty list where it does not exist.

    Raises:
        RunError: If it cannot be read or lacks a column of `required`.
    """
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = [{str(k): value(v or "") for k, v in row.items() if k is not None} for row in reader]
            missing = [name for name in required if name not in (reader.fieldnames or ())]
    except (OSError, ValueError, csv.Error) as error:
        raise RunError(f"{path} cannot be read: {error}.") from None
    if missing:
        raise RunError(f"{path} has no column {', '.join(map(repr, missing))}.")
    return rows
