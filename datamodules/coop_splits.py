"""Data sets of the CoOp benchmark, with their split_zhou_*.json read in place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .base import DataModule
from .configs import CoopSplitsConfig
from .errors import DataError, counted, nearest, some
from .listing import SPLITS, ClassNames, Listing, Sample, find_root, texts_for

_USUAL_FOLDERS = ("images", "101_ObjectCategories", "jpg", "2750", "UCF-101-midframes", "SUN397", "")


class CoopSplitsDataModule(DataModule):
    """A split file of the form {"train": [[path, label, class name], ...], "val": ..., "test": ...}.

    The order of the file is kept, which `data.sampling=dassl` needs to give the published shots. Images are
    looked for in `data.image_dir`, else in the usual folders of these data sets and in every folder of the
    root.
    """

    config: CoopSplitsConfig

    def listing(self) -> Listing:
        """Read the split file."""
        root = find_root(self.config.root)
        return read_split(root, _find_split_file(root, self.config.split_file), self.config.image_dir)


def read_split(root: Path, file: Path, image_dir: str | None) -> Listing:
    """What a split file lists.

    Args:
        root: folder of the data set.
        file: the JSON.
        image_dir: folder below the root that its paths start from; None to find it.

    Raises:
        DataError: the file is not a split file, or its images are not found.
    """
    entries = _read(file)
    names: dict[int, str] = {}
    for _, _, label, name in entries:
        if names.setdefault(label, name) != name:
            raise DataError(f"{file}: the label {label} stands for '{names[label]}' and '{name}'.")
    labels = sorted(names)
    if len(set(names.values())) < len(names):
        twice = sorted({n for n in names.values() if list(names.values()).count(n) > 1})
        raise DataError(
            f"{file}: {some(twice)} {'is' if len(twice) == 1 else 'are'} the name of several labels."
        )
    number = {label: i for i, label in enumerate(labels)}
    folder = _find_images(root, file, [path for _, path, _, _ in entries], image_dir)
    samples: list[Sample] = []
    splits: list[str | None] = []
    missing: list[str] = []
    seen: dict[str, str] = {}
    report: list[str] = []
    doubles: list[str] = []
    for split, path, label, _ in entries:
        image = folder / path
        if path in seen:
            doubles.append(path)
        elif not image.is_file():
            missing.append(path)
        else:
            samples.append(Sample(path, number[label], -1, image))
            splits.append(split)
        seen.setdefault(path, split)
    faults = []
    if doubles:
        report.append(
            f"{counted(len(doubles), 'image')} listed again in {file.name}, left out: {some(doubles, 3)}."
        )
    if missing:
        faults.append(
            f"{counted(len(missing), 'file')} missing in {folder} and left out: {some(missing, 4)}."
        )
    class_names = [names[label] for label in labels]
    texts, sentences = texts_for(class_names, ClassNames(), file.name)
    return Listing(class_names, texts, samples, splits, [*report, *faults, *sentences], faults)


def _find_split_file(root: Path, given: str | None) -> Path:
    found = sorted(root.glob("split_zhou_*.json"))
    if given:
        for file in (root / given, Path(given).expanduser()):
            if file.is_file():
                return file
        raise DataError(
            f"There is no {given} in {root} (data.split_file).{nearest(given, [file.name for file in found])}"
        )
    if len(found) == 1:
        return found[0]
    what = f"found {some([file.name for file in found])}: name one" if found else "found none: name the file"
    raise DataError(f"Looked for one split_zhou_*.json in {root}, {what} with data.split_file.")


def _read(file: Path) -> list[tuple[str, str, int, str]]:
    """Entries as (split, path, label, class name), in the order of the file."""
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
        entries = [
            (split, str(path), int(label), str(name))
            for split in SPLITS
            for path, label, name in content.get(split, [])
        ]
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{file} is not a split file "
            f'{{"train": [[path, label, class name], ...], "val": ..., "test": ...}}: {error}'
        ) from error
    if not entries:
        raise DataError(f"{file} lists no images under train, val or test; it has {some(sorted(content)) or 'nothing'}.")
    return entries


def _find_images(root: Path, file: Path, paths: list[str], given: str | None) -> Path:
    """The folder below which most of a sample of the paths exist."""
    if given:
        candidates = [root / given]
    else:
        below = [p for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith(".")]
        nested = [q for p in below for q in (p / "images", p / "101_ObjectCategories") if q.is_dir()]
        candidates = [*(root / name for name in _USUAL_FOLDERS), *below, *nested, file.parent]
    probe = paths[:: max(1, len(paths) // 20)]
    best = max(candidates, key=lambda folder: sum((folder / path).is_file() for path in probe))
    if not any((best / path).is_file() for path in probe):
        looked = some([str(folder) for folder in dict.fromkeys(candidates)], 4)
        raise DataError(
            f"The images of {file.name} were not found, for instance {paths[0]}; looked in {looked}. Set "
            "data.image_dir to the folder (below data.root) that the paths start from."
        )
    return best
