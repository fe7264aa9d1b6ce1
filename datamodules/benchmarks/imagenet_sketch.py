"""ImageNet-Sketch: 1000 classes as drawings; test images only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from .imagenet import named
from .reading import Found, class_folders


def read(folder: Path, variant: str | None = None) -> Found:
    """List the folders of WordNet ids in images/ (or in the folder itself)."""
    inside = folder / "images"
    inside = inside if inside.is_dir() else folder
    return replace(named(class_folders(inside, "test"), folder), base=inside)
