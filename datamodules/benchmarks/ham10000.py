"""HAM10000: 7 diagnoses of pigmented skin lesions; no official split, several images of one lesion."""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError, some
from ..listing import read_rows
from .reading import Entry, Found, need
from .skin import diagnoses, images_by_stem


def read(folder: Path, variant: str | None = None) -> Found:
    """Read HAM10000_metadata.csv: image_id, dx and lesion_id; images of one lesion stay together."""
    file = need(folder / "HAM10000_metadata.csv", folder / "HAM10000_metadata")
    columns, rows = read_rows(file)
    if not {"image_id", "dx", "lesion_id"} <= set(columns):
        raise DataError(f"{file} needs the columns lesion_id, image_id and dx; it has {some(columns)}.")
    where = images_by_stem(folder)
    entries = [
        Entry(where.get(row["image_id"], f"{row['image_id']}.jpg"), row["dx"], None, row["lesion_id"]) for row in rows
    ]
    return Found(entries, texts=diagnoses())
