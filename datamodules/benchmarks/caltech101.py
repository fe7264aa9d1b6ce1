"""Caltech101: 100 kinds of objects; no official split."""

from __future__ import annotations

from pathlib import Path

from .facts import read_json
from .reading import Found, class_folders, renamed

LEFT_OUT = ("BACKGROUND_Google", "Faces_easy")


def read(folder: Path, variant: str | None = None) -> Found:
    """List 101_ObjectCategories without the background and the second folder of faces (as CoOp)."""
    images = class_folders(folder / "101_ObjectCategories", top=folder)
    names = read_json("class_names.json")["caltech101"]
    kept = [entry for entry in images if entry.name not in LEFT_OUT]
    order = [names.get(name, name) for name in sorted({entry.name for entry in kept})]
    return Found(renamed(kept, names), order)
