"""ImageNet-A: photographs of 200 classes that networks get wrong; test images only."""

from __future__ import annotations

from pathlib import Path

from .imagenet import named
from .reading import Found, class_folders


def read(folder: Path, variant: str | None = None) -> Found:
    """List the folders of WordNet ids in imagenet-a/ (or in the folder itself)."""
    inside = folder / "imagenet-a"
    return named(class_folders(inside if inside.is_dir() else folder, "test", folder), folder)
