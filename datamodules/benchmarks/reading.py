"""What the files of the data sets share: entries, folders of classes, lists of lines."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..images import is_image_name


@dataclass(frozen=True)
class Entry:
    """One image of a data set.

    Attributes:
        path: unique name, below the folder of the data set where it is a file.
        name: its class.
        split: "train", "val", "test", or None.
        group: what must not be split, or None.
        extra: further facts; `stored` where the image is not a file.
    """

    path: str
    name: str
    split: str | None = None
    group: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Found:
    """What the files of a data set say.

    Attributes:
        entries: the images, in the order of the files.
        order: classes in label order; empty for alphabetical order.
        texts: class -> text name, where it is another.
        split: what the split is, as part of a sentence; "" where there is none.
        notes: further sentences for the plan.
        base: folder that the paths start from; None for that of the data set.
    """

    entries: list[Entry]
    order: list[str] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    split: str = ""
    notes: list[str] = field(default_factory=list)
    base: Path | None = None


class NotThere(Exception):
    """A file of the data set is missing; the argument is its path."""


def need(*candidates: Path) -> Path:
    """The first of several paths that exists.

    Raises:
        NotThere: none does.
    """
    for path in candidates:
        if path.exists():
            return path
    raise NotThere(candidates[0])


def lines(*candidates: Path) -> list[str]:
    """The lines that are not empty of the first file that exists.

    Raises:
        NotThere: none does.
        DataError: it is not a text.
    """
    file = need(*candidates)
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise DataError(f"{file} is not a text in UTF-8.") from None


def class_folders(folder: Path, split: str | None = None, top: Path | None = None) -> list[Entry]:
    """The images in the sub-folders of a folder, each of which is a class; sorted.

    Args:
        folder: the folder of class folders.
        split: the split of all of them.
        top: what paths are written relative to; None for `folder`.

    Raises:
        NotThere: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise NotThere(folder)
    found = []
    for name in sorted(os.listdir(folder)):  # noqa: PTH208 - a million files
        inside = folder / name
        if name.startswith(".") or not inside.is_dir():
            continue
        start = inside.relative_to(top or folder).as_posix()
        found += [
            Entry(f"{start}/{file}", name, split) for file in sorted(os.listdir(inside)) if is_image_name(file)  # noqa: PTH208
        ]
    if not found:
        raise NotThere(folder)
    return found


def table(file: Path) -> list[dict[str, Any]]:
    """Rows of a MATLAB file's struct array `annotations`, fields as plain values (MATLAB 5 format)."""
    import scipy.io

    records = scipy.io.loadmat(file, squeeze_me=True, struct_as_record=True)["annotations"]
    records = records.reshape(-1)
    return [{name: record[name] for name in records.dtype.names} for record in records]


def renamed(entries: Iterable[Entry], names: Mapping[str, str]) -> list[Entry]:
    """The entries with other class names, where `names` has one."""
    return [Entry(e.path, names.get(e.name, e.name), e.split, e.group, e.extra) for e in entries]
