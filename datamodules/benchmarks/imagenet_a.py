"""ImageNet-A: photographs of 200 classes that networks get wrong; test images only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from .imagenet import named
from .reading import Found, class_folders


def read(folder: Path, variant: str | None = None) -> Found:
    """List the folders of WordNet ids in imagenet-a/ (or in the folder itself)."""
    inside = folder / "imagenet-a"
    inside = inside if inside.is_dir() else folder
    return replace(named(class_folders(inside, "test"), folder), base=inside)
