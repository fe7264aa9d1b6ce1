"""Tiny-ImageNet: 200 classes, 64 pixels; the labelled validation images are the test images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..images import is_image_name
from .imagenet import named
from .reading import Entry, Found, NotThere, lines


def read(folder: Path, variant: str | None = None) -> Found:
    """List train/ID/images and read val/val_annotations.txt; names that ImageNet lacks are those of words.txt."""
    top = folder / "train"
    if not top.is_dir():
        raise NotThere(top)
    entries = [
        Entry(file.relative_to(folder).as_posix(), wnid.name, "train")
        for wnid in sorted(path for path in top.iterdir() if path.is_dir())
        for file in sorted((wnid / "images").glob("*"))
        if is_image_name(file.name)
    ]
    for line in lines(folder / "val" / "val_annotations.txt"):
        file, wnid = line.split("\t")[:2]
        entries.append(Entry(f"val/images/{file}", wnid, "test"))
    found = named(entries, folder)
    missing = {wnid for wnid, text in found.texts.items() if text == wnid}
    if missing and (folder / "words.txt").is_file():
        words = dict(line.split("\t", 1) for line in lines(folder / "words.txt") if "\t" in line)
        found.texts |= {wnid: words[wnid].split(",")[0] for wnid in missing & set(words)}
    return replace(found, split="the training images and, for testing, the labelled validation images")
