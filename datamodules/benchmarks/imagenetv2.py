"""ImageNetV2: new test images of the 1000 classes, collected as those of ImageNet were."""

from __future__ import annotations

from pathlib import Path

from .facts import imagenet_names
from .imagenet import named
from .reading import Found, class_folders, need, renamed


def read(folder: Path, variant: str | None = None) -> Found:
    """List the folders 0 to 999, which number the sorted WordNet ids."""
    kind = variant or "matched-frequency"
    base = need(folder / f"imagenetv2-{kind}-format-val", folder / "0").parent
    inside = folder / f"imagenetv2-{kind}-format-val"
    entries = class_folders(inside if inside.is_dir() else base, "test", folder)
    ids = {str(number): wnid for number, wnid in enumerate(imagenet_names())}
    return named(renamed(entries, ids), folder)
