"""Fish4Knowledge: 23 species of reef fish from underwater video; no official split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from .facts import read_json
from .reading import Found, class_folders


def read(folder: Path, variant: str | None = None) -> Found:
    """List fish_image/fish_NN; the first number of a file is the fish's track, whose frames look alike."""
    inside = folder / "fish_image"
    entries = class_folders(inside if inside.is_dir() else folder, top=folder)
    entries = [replace(e, group=f"{e.name} {Path(e.path).stem.split('_')[1]}") for e in entries if "_" in Path(e.path).stem]
    return Found(entries, texts=dict(read_json("class_names.json")["fish4knowledge"]))
