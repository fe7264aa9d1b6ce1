"""ImageNet: 1000 classes; its validation images are the test images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from .facts import imagenet_names
from .reading import Entry, Found, class_folders, lines, need


def read(folder: Path, variant: str | None = None) -> Found:
    """List train/ and val/, folders of WordNet ids (below images/, too); classnames.txt (id, name) counts if there."""
    base = need(folder / "train", folder / "images" / "train").parent
    train, val = (class_folders(base / split, split, folder) for split in ("train", "val"))
    test = [replace(entry, split="test") for entry in val]
    note = "ImageNet has no published list of shots: files are taken in alphabetical order."
    found = named([*train, *test], folder)
    return replace(found, split="the training images and, for testing, the validation images", notes=[note])


def named(entries: list[Entry], folder: Path) -> Found:
    """Entries whose classes are WordNet ids, with the English names of OpenAI's list (or of classnames.txt)."""
    names = imagenet_names()
    own = folder / "classnames.txt"
    if own.is_file():
        names = {line.partition(" ")[0]: line.partition(" ")[2] for line in lines(own)}
    present = {entry.name for entry in entries}
    return Found(entries, sorted(present), {wnid: names.get(wnid, wnid) for wnid in present})
