"""What the tables of skin lesions share: images by the name of their file, wherever they lie, and diagnoses in words."""

from __future__ import annotations

from pathlib import Path

from ..images import is_image_name
from .facts import read_json


def images_by_stem(folder: Path) -> dict[str, str]:
    """File stem -> path below the folder, of all images at any depth; of two with one stem the first."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        if is_image_name(path.name):
            found.setdefault(path.stem, path.relative_to(folder).as_posix())
    return found


def diagnoses() -> dict[str, str]:
    """Abbreviation in small letters -> diagnosis."""
    return dict(read_json("class_names.json")["skin"])
