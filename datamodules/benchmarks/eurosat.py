"""EuroSAT: 10 kinds of land cover from Sentinel-2, in RGB; no official split."""

from __future__ import annotations

from pathlib import Path

from .facts import read_json
from .reading import Found, class_folders, need, renamed


def read(folder: Path, variant: str | None = None) -> Found:
    """List 2750/ with the class names in words (as CoOp)."""
    names = read_json("class_names.json")["eurosat"]
    images = class_folders(need(folder / "2750", folder / "EuroSAT"), top=folder)
    return Found(renamed(images, names), list(names.values()))
