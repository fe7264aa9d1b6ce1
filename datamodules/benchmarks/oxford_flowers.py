"""Flowers102: 102 flowers that are common in Britain."""

from __future__ import annotations

import json
from pathlib import Path

from .facts import read_lines
from .reading import Entry, Found, need


def read(folder: Path, variant: str | None = None) -> Found:
    """Read imagelabels.mat and setid.mat (10 training and 10 validation images of each class)."""
    import scipy.io

    labels = scipy.io.loadmat(need(folder / "imagelabels.mat"))["labels"].reshape(-1)
    sets = scipy.io.loadmat(need(folder / "setid.mat"))
    names = read_lines("flower_names.txt")
    given = folder / "cat_to_name.json"
    if given.is_file():
        read_names = json.loads(given.read_text(encoding="utf-8"))
        names = [read_names.get(str(number), name) for number, name in enumerate(names, 1)]
    found = [
        Entry(f"jpg/image_{image:05d}.jpg", names[int(labels[image - 1]) - 1], split)
        for key, split in (("trnid", "train"), ("valid", "val"), ("tstid", "test"))
        for image in sets[key].reshape(-1).tolist()
    ]
    return Found(found, names, split="setid.mat, with 10 training images of each class")
