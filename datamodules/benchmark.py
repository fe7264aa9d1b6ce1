"""Data sets that papers report on, by name: the field's splits, class names and templates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from .base import DataModule
from .benchmarks.facts import Facts, read_json, templates
from .benchmarks.finding import download, facts_of, find, folders
from .benchmarks.reading import Entry, Found
from .configs import BenchmarkConfig, DataConfig
from .coop_splits import read_split
from .errors import DataError, counted, nearest, some
from .listing import SPLITS, ClassNames, Listing, Sample, default_text, texts_for, without_empty
from .stored import read_stored

TEMPLATES = ("hand_crafted", "ensemble", "recipe")
OFFICIAL = "official"


class BenchmarkDataModule(DataModule):
    """A published data set in its own folders.

    The field's split file (split_zhou_*.json) is read in place where it is in the data set's folder; where it is not, the
    official split is used, and where there is none, each class is divided 50/20/30. The report says which.

    Attributes:
        templates: sentences around the class names, or None for those of the recipe.
    """

    config: BenchmarkConfig

    def __init__(self, config: DataConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.facts = facts_of(self.config.dataset, ordering=False)
        kind = self.config.templates
        if kind not in TEMPLATES:
            raise DataError(f"data.templates is '{kind}'; known are {', '.join(TEMPLATES)}.{nearest(kind, TEMPLATES)}")
        self.templates = templates(self.config.dataset, kind)

    @property
    def reader(self) -> Callable[[Sample], Image.Image]:
        """Decodes files, members of archives and rows of arrays."""
        return read_stored

    def content_key(self, sample: Sample) -> str:
        """SHA-256 (hex) of what the image is made from."""
        stored = sample.extra.get("stored")
        return super().content_key(sample) if stored is None else str(stored.key())

    def manifest(self) -> dict[str, Any]:
        """What was drawn, and the words: names of the classes in prompts, and templates."""
        words = {"dataset": self.config.dataset, "texts": self.class_texts, "templates": self.templates}
        return {**super().manifest(), **words}

    def listing(self) -> Listing:
        """Read the split file, or the data set's own lists."""
        if self.config.download:
            download(self.config.dataset, self.config.root)
        listing = self._from_split_file() or self._official()
        sizes = self.facts.sizes
        have = Counter(listing.splits or [])
        if sizes and any(have[s] != n for s, n in zip(SPLITS, sizes, strict=True) if have[s] or s == "test"):
            ours = "/".join(str(have[split]) for split in SPLITS)
            wanted = "/".join(map(str, sizes))
            listing.report.append(
                f"{self.facts.title} has {ours} images for training, validation and testing here; in papers it has {wanted}."
            )
        return listing

    def _from_split_file(self) -> Listing | None:
        """The field's split, where its file is."""
        given = self.config.split_file
        name = given or self.facts.split_file
        if name is None or given == OFFICIAL:
            return None
        for folder in folders(self.config.root, self.facts):
            for file in (folder / name, Path(name).expanduser() if given else folder / name):
                if file.is_file():
                    images = self.facts.images
                    at = images if images and (folder / images).is_dir() else None
                    return self._in_words(read_split(folder, file, at), file.name)
        if given:
            raise DataError(
                f"There is no {given} for {self.facts.title} in {self.config.root} (data.split_file). Leave it out for the "
                "field's split file where it is there, or write data.split_file=official for the official split."
            )
        return None

    def _in_words(self, listing: Listing, source: str) -> Listing:
        """The listing with the field's class names, which a split file may spell as its folders do."""
        names = read_json("class_names.json").get(self.config.dataset, {})
        fixed = [str(names.get(name, name)) for name in listing.class_names]
        texts, sentences = texts_for(fixed, ClassNames(), source)
        split = f"{self.facts.title}: the field's split, {source}."
        return replace(listing, class_names=fixed, class_texts=texts, report=[split, *listing.report, *sentences])

    def _official(self) -> Listing:
        folder, found = find(self.config.dataset, self.config.root, self.config.variant)
        return make_listing(folder, found, self.facts)


def make_listing(folder: Path, found: Found, facts: Facts) -> Listing:
    """A listing of what the files of a data set say.

    Raises:
        DataError: no image is listed, or none of them is there.
    """
    folder = found.base or folder
    if not found.entries:
        raise DataError(f"The files of {facts.title} in {folder} list no images. Wanted: {facts.wanted}.")
    entries, missing, again = _existing(folder, found.entries)
    if not entries:
        raise DataError(
            f"None of the {len(missing)} images that {facts.title} lists is in {folder}, for instance {missing[0]}. "
            f"Wanted: {facts.wanted}."
        )
    names = found.order or sorted({entry.name for entry in entries})
    number = {name: i for i, name in enumerate(names)}
    unknown = sorted({entry.name for entry in entries} - set(names))
    if unknown:
        raise DataError(
            f"{facts.title} in {folder} has images of {some(unknown)}, which its own list of classes lacks: it is damaged or not "
            f"as published. Wanted: {facts.wanted}."
        )
    samples = [
        Sample(e.path, number[e.name], -1, None if "stored" in e.extra else folder / e.path, e.group, None, e.extra)
        for e in entries
    ]
    names, samples = without_empty(names, samples)
    texts = {name: [found.texts.get(name) or default_text(name)] for name in names}
    _, sentences = texts_for(names, ClassNames(dict(texts.items())), facts.title)
    splits = [entry.split for entry in entries]
    faults = []
    if missing:
        faults.append(f"{counted(len(missing), 'file')} of {facts.title} missing in {folder} and left out: {some(missing, 4)}.")
    report = [_split_sentence(found, facts, folder), *found.notes, *faults, *sentences]
    if again:
        report.append(f"{counted(again, 'image')} listed again, left out.")
    return Listing(names, texts, samples, splits if any(splits) else None, report, faults)


def _existing(folder: Path, entries: list[Entry]) -> tuple[list[Entry], list[str], int]:
    """Entries whose image is there, paths of those whose is not, and how many are repeated."""
    kept, missing, seen, again = [], [], set(), 0
    for entry in entries:
        if entry.path in seen:
            again += 1
        elif "stored" in entry.extra or (folder / entry.path).is_file():
            kept.append(entry)
        else:
            missing.append(entry.path)
        seen.add(entry.path)
    return kept, missing, again


def _split_sentence(found: Found, facts: Facts, folder: Path) -> str:
    split = f"the official split ({found.split})" if found.split else "no official split"
    if facts.split_file is None:
        return f"{facts.title}: {split}."
    return (
        f"{facts.title}: {split}, as there is no {facts.split_file} in {folder}: images differ from those of the papers on "
        "few-shot learning, and figures with them."
    )
