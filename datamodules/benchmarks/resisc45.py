"""RESISC45: 45 kinds of scenes from the air, 700 images each; no official split."""

from __future__ import annotations

from pathlib import Path

from .reading import Found, class_folders


def read(folder: Path, variant: str | None = None) -> Found:
    """List the class folders."""
    inside = folder / "NWPU-RESISC45"
    return Found(class_folders(inside if inside.is_dir() else folder, top=folder))
