"""ImageNetV2: new test images of the 1000 classes, collected as those of ImageNet were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from .facts import imagenet_names
from .imagenet import named
from .reading import Found, NotThere, class_folders, renamed


def read(folder: Path, variant: str | None = None) -> Found:
    """List the folders 0 to 999, which number the sorted WordNet ids."""
    inside = folder / f"imagenetv2-{variant or 'matched-frequency'}-format-val"
    if not (inside.is_dir() or (folder / "0").is_dir()):
        raise NotThere(inside)
    inside = inside if inside.is_dir() else folder
    ids = {str(number): wnid for number, wnid in enumerate(imagenet_names())}
    return replace(named(renamed(class_folders(inside, "test"), ids), folder), base=inside)
