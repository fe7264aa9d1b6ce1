"""ISIC challenges: skin lesions with one column of 0 or 1 for each diagnosis; no official split of the labelled images."""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError, some
from ..listing import read_rows
from .reading import Entry, Found, NotThere
from .skin import diagnoses, images_by_stem


def read(folder: Path, variant: str | None = None) -> Found:
    """Read the *GroundTruth.csv (the one that `variant` names, where there are several).

    A *LesionGroupings.csv or *Metadata.csv beside it with the columns image and lesion_id keeps the images of one lesion
    together.

    Raises:
        DataError: several files and no variant, a cell that is no number, or a row with no or several diagnoses.
    """
    found = sorted(path for path in folder.rglob("*GroundTruth*.csv") if variant is None or variant in path.name)
    if not found:
        raise NotThere(folder / f"{variant or ''}*GroundTruth.csv")
    if len(found) > 1:
        raise DataError(f"{folder} holds {some([p.name for p in found])}: name one with data.variant.")
    columns, rows = read_rows(found[0])
    lesion = _lesions(folder)
    where, entries = images_by_stem(folder), []
    for row in rows:
        names = [column for column in columns[1:] if row[column] and _share(row[column], column, found[0]) > 0.5]
        if len(names) != 1:
            raise DataError(f"{found[0]}: {row[columns[0]]} has {len(names)} diagnoses; one is needed for each image.")
        image = row[columns[0]]
        entries.append(Entry(where.get(image, f"{image}.jpg"), names[0], None, lesion.get(image)))
    order = [column for column in columns[1:] if any(entry.name == column for entry in entries)]
    words = diagnoses()
    notes = [] if lesion else [f"{folder} has no table of lesions: images of one lesion may lie on two sides of the split."]
    return Found(entries, order, {name: words.get(name.lower(), name) for name in order}, notes=notes)


def _share(cell: str, column: str, file: Path) -> float:
    try:
        return float(cell)
    except ValueError:
        raise DataError(
            f"{file}: the column {column} holds '{cell}', where 0 or 1 is expected: one column for each diagnosis. A table of "
            "another form can be read with data=table."
        ) from None


def _lesions(folder: Path) -> dict[str, str]:
    """Image -> lesion, from the first table that has both."""
    for file in sorted([*folder.rglob("*LesionGroupings*.csv"), *folder.rglob("*Metadata*.csv")]):
        columns, rows = read_rows(file)
        if {"image", "lesion_id"} <= set(columns):
            return {row["image"]: row["lesion_id"] for row in rows if row["lesion_id"]}
    return {}
