"""UCMerced: 21 kinds of land use from the air, 100 images each; no official split."""

from __future__ import annotations

from pathlib import Path

from .facts import read_json
from .reading import Found, class_folders


def read(folder: Path, variant: str | None = None) -> Found:
    """List the class folders in Images/ (or in the folder itself)."""
    inside = folder / "Images"
    entries = class_folders(inside if inside.is_dir() else folder, top=folder)
    return Found(entries, texts=dict(read_json("class_names.json")["ucmerced"]))
