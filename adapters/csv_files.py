"""CSV files that spreadsheets and programs both read rightly."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from .errors import RunError

PREDICTIONS = ("path", "label", "predicted", "probability", "correct", "space")
PER_CLASS = ("space", "class", "text", "images", "accuracy", "zero_shot_accuracy")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def cell(text: str) -> str:
    """Return the text of a cell; what a spreadsheet would run as a formula gets an apostrophe in front."""
    if not text.startswith(_FORMULA):
        return text
    try:
        float(text)
    except ValueError:
        return "'" + text
    return text


def read_rows(path: Path, required: Sequence[str] = ()) -> list[dict[str, str]]:
    """Read a CSV file; an empty list where it does not exist.

    Raises:
        RunError: If it cannot be read or lacks a column of `required`.
    """
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = [{str(k): v or "" for k, v in row.items() if k is not None} for row in reader]
            missing = [name for name in required if name not in (reader.fieldnames or ())]
    except (OSError, ValueError, csv.Error) as error:
        raise RunError(f"{path} cannot be read: {error}.") from None
    if missing and rows:
        raise RunError(f"{path} has no column {', '.join(map(repr, missing))}.")
    return rows
