"""Images in one sub-folder for each class, with or without train, val and test folders above them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from .base import DataModule
from .configs import FolderConfig, TableConfig
from .errors import DataError, counted, some
from .images import DICOM_SUFFIXES, is_image_name
from .listing import (
    Listing,
    Sample,
    clean,
    find_classnames,
    find_root,
    order_classes,
    split_word,
    texts_for,
)
from .table import read_listing


class FolderDataModule(DataModule):
    """A folder with one sub-folder of images for each class.

    Sub-folders train, val (valid, validation, dev) and test may stand above the classes. A labels.csv in the
    root is read as a table instead. A classnames.csv (folder, name, optionally label) gives text names,
    with a row for each of several names of one folder. Hidden files are ignored, images below a class
    folder belong to it at any depth, links are followed but never in a circle.
    """

    config: FolderConfig

    def listing(self) -> Listing:
        """List the images, sorted by name."""
        root = find_root(self.config.root)
        if (root / "labels.csv").is_file():
            return read_listing(root / "labels.csv", root, _as_table(self.config))
        if self.config.domain_column:
            raise DataError(f"data.domain_column needs a table: there is no labels.csv in {root}.")
        return _list_folder(root, self.config)


def _as_table(config: FolderConfig) -> TableConfig:
    shared = {f.name for f in fields(TableConfig)} & {f.name for f in fields(config)} - {"name"}
    return TableConfig(**{name: getattr(config, name) for name in shared})


def _list_folder(root: Path, config: FolderConfig) -> Listing:
    report: list[str] = []
    others: Counter[str] = Counter()
    found: list[tuple[str, str, str | None]] = []  # class, path below the root, split
    folders: dict[str, int] = {}
    for split, top in _tops(root, report):
        loose = [name for name in _visible(top) if is_image_name(name) and (top / name).is_file()]
        if loose:
            report.append(
                f"{counted(len(loose), 'image')} directly in {top.name} belong to no class: {some(loose, 3)}."
            )
        classes = [name for name in _visible(top) if (top / name).is_dir()]
        closed = {os.path.realpath(p) for p in (root, *root.absolute().parents, top)}
        closed |= {os.path.realpath(top / name) for name in classes}
        for folder in classes:
            name = clean(folder)
            folders.setdefault(name, 0)
            for path in _walk(top / folder, set(closed), others):
                found.append((name, path.relative_to(root).as_posix(), split))
                folders[name] += 1
    _need_images(root, found, folders, others)
    empty = sorted(name for name, count in folders.items() if not count)
    if empty:
        report.append(f"{counted(len(empty), 'folder')} without images left out: {some(empty)}.")
    if others:
        kinds = some([f"{n} {kind or 'without suffix'}" for kind, n in sorted(others.items())])
        report.append(f"{counted(sum(others.values()), 'file')} in class folders are not images: {kinds}.")
    given = find_classnames(config.classnames, [root])
    class_names = order_classes([name for name, _, _ in found], given.labels)
    number = {name: i for i, name in enumerate(class_names)}
    found.sort(key=lambda entry: entry[1])
    samples = [Sample(path, number[name], -1, root / path) for name, path, _ in found]
    splits = [split for _, _, split in found]
    texts, sentences = texts_for(class_names, given, config.classnames)
    return Listing(class_names, texts, samples, splits if any(splits) else None, report + sentences)


def _tops(root: Path, report: list[str]) -> list[tuple[str | None, Path]]:
    """The folders that hold class folders, each with its split, or the root alone."""
    folders = [name for name in _visible(root) if (root / name).is_dir()]
    splits = {name: split for name in folders if (split := split_word(name)) and _has_folders(root / name)}
    if not splits or ("train" not in splits.values() and len(splits) < len(folders)):
        return [(None, root)]
    if len(set(splits.values())) < len(splits):
        raise DataError(
            f"{root} has several folders for one split: {some(sorted(splits))}. Keep one of each."
        )
    ignored = [name for name in folders if name not in splits]
    if ignored:
        report.append(f"Folders beside train, val and test are ignored: {some(ignored)}.")
    return [(split, root / name) for name, split in splits.items()]


def _visible(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if not name.startswith((".", "__MACOSX")))  # noqa: PTH208


def _has_folders(folder: Path) -> bool:
    return any((folder / name).is_dir() for name in _visible(folder))


def _walk(folder: Path, closed: set[str], others: Counter[str]) -> Iterator[Path]:
    """Images below a folder; real folders in `closed` are not entered, so links cannot lead in a circle."""
    closed.add(os.path.realpath(folder))
    for name in _visible(folder):
        path = folder / name
        if path.is_dir():
            if os.path.realpath(path) not in closed:
                yield from _walk(path, closed, others)
        elif is_image_name(name):
            yield path
        else:
            others[path.suffix.lower()] += 1


def _need_images(
    root: Path, found: list[tuple[str, str, str | None]], folders: dict[str, int], others: Counter[str]
) -> None:
    if found:
        return
    if any(kind in DICOM_SUFFIXES for kind in others):
        raise DataError(
            f"{root} holds DICOM files; export them as 8-bit PNG or JPEG, with the window you want to "
            "see, first."
        )
    loose = [name for name in _visible(root) if is_image_name(name)]
    if loose:
        raise DataError(
            f"{root} holds {counted(len(loose), 'image')} but no class folders: put the images of each "
            "class into a "
            "folder of its name, or list them in a labels.csv with the columns path and label."
        )
    what = (
        f"the folders {some(sorted(folders))}, all without images"
        if folders
        else some(_visible(root)) or "nothing"
    )
    raise DataError(f"No images in {root}: expected one folder of images for each class, found {what}.")
