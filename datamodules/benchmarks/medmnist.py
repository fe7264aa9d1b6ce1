"""MedMNIST: small medical images of many kinds, each an .npz of arrays."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ..errors import DataError, nearest, some
from ..stored import Row
from .facts import read_json
from .reading import Entry, Found, NotThere

SPLITS = ("train", "val", "test")


def read(folder: Path, variant: str | None = None) -> Found:
    """Read {train,val,test}_images (N, H, W[, 3]) and _labels (N, 1) of the .npz that `variant` names.

    Raises:
        DataError: several files and no variant, arrays of another form, several labels for an image, or volumes.
    """
    file = _choose(folder, variant)
    with np.load(file, allow_pickle=False) as arrays:
        missing = [f"{s}_{what}" for s in SPLITS for what in ("images", "labels") if f"{s}_{what}" not in arrays]
        if missing:
            raise DataError(f"{file} lacks the arrays {some(missing)}; it has {some(sorted(arrays)) or 'none'}.")
        content = {s: (np.asarray(arrays[f"{s}_images"]), np.asarray(arrays[f"{s}_labels"])) for s in SPLITS}
    names = read_json("class_names.json")["medmnist"].get(re.sub(r"_\d+$", "", file.stem.lower()), [])
    entries, labels_seen = [], set()
    for split, (images, labels) in content.items():
        if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] != 3) or images.dtype != np.uint8:
            raise DataError(
                f"{file}: {split}_images is {images.dtype} of shape {images.shape}; bytes of shape (N, H, W) or "
                "(N, H, W, 3) are read (volumes are not images)."
            )
        if labels.size != len(images):
            raise DataError(f"{file}: an image has several labels; one for each image is needed here.")
        for number, label in enumerate(labels.reshape(-1).tolist()):
            labels_seen.add(int(label))
            extra = {"stored": Row(images, number)}
            entries.append(Entry(f"{split}/{number:06d}", _name(int(label), names), split, extra=extra))
    order = [_name(label, names) for label in sorted(labels_seen)]
    notes = [] if names else [f"The names of the classes of {file.name} are not known here; say them in classes.texts."]
    return Found(entries, order, split=f"the splits of {file.name}", notes=notes)


def _name(label: int, names: list[str]) -> str:
    return names[label] if label < len(names) else f"class {label}"


def _choose(folder: Path, variant: str | None) -> Path:
    found = sorted(folder.glob("*.npz"))
    if not found:
        raise NotThere(folder / f"{variant or '*'}.npz")
    if variant is None and len(found) == 1:
        return found[0]
    stems = [file.stem for file in found]
    if variant is None or variant.removesuffix(".npz") not in stems:
        asked = "name one with data.variant" if variant is None else f"there is no {variant}"
        raise DataError(f"{folder} holds {some(stems)}: {asked}.{nearest(variant or '', stems)}")
    return folder / f"{variant.removesuffix('.npz')}.npz"
