"""What a source of images offers before anything is split or drawn."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .errors import DataError, some

SPLITS = ("train", "val", "test")
CLASSNAMES = "classnames.csv"  # looked for, and used where it is
_SPLIT_WORDS = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}


@dataclass(frozen=True)
class Sample:
    """One image and what is known about it.

    Attributes:
        path: unique name, relative to the root where possible, with forward slashes.
        label: position of its class in the data module's `class_names`.
        index: position of `path` in the sorted listing of the whole source; the same whatever is drawn.
        file: the file, or None for a drawn image.
        group: what must not be split (patient, trajectory), or None.
        domain: domain of the image (stain, camera, look), or None.
        extra: further facts by name (value, caption, boxes, other columns of the table).
    """

    path: str
    label: int
    index: int = -1
    file: Path | None = None
    group: str | None = None
    domain: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Listing:
    """Everything a source offers.

    Attributes:
        class_names: the data's own names, in label order.
        class_texts: text names of each class, for prompts.
        samples: all images, in the order of the source.
        splits: the split that the source gives for each sample ("train", "val", "test", or None), or None.
        report: sentences for the plan.
        strict_faults: the sentences among them at which `data.strict` stops.
        offers: keys that items carry where a method asks for them (boxes, say).
    """

    class_names: list[str]
    class_texts: dict[str, list[str]]
    samples: list[Sample]
    splits: list[str | None] | None = None
    report: list[str] = field(default_factory=list)
    strict_faults: list[str] = field(default_factory=list)
    offers: tuple[str, ...] = ()


def split_word(word: str) -> str | None:
    """The split that a folder or a cell names ("Validation" -> "val"), or None."""
    return _SPLIT_WORDS.get(word.strip().lower())


def clean(name: str) -> str:
    """One spelling for names that file systems write in two (composed and decomposed accents)."""
    return unicodedata.normalize("NFC", name.strip())


def default_text(name: str) -> str:
    """Text name of a class without one: its own name, underscores as spaces."""
    return re.sub(r"\s+", " ", name.replace("_", " ")).strip()


def order_classes(names: Sequence[str], labels: Mapping[str, int]) -> list[str]:
    """Sort class names by label where there are labels, else by code point; those without one come last."""
    return sorted(set(names), key=lambda name: (name not in labels, labels.get(name, 0), name))


def find_root(root: str | None) -> Path:
    """The folder `data.root` names.

    Raises:
        DataError: not given, missing, or not a folder.
    """
    if not root:
        raise DataError(
            "data.root is not set; give the folder of your images, for instance data.root=my_images."
        )
    folder = Path(root).expanduser()
    if not folder.exists():
        near = folder.absolute()
        while not near.exists():
            near = near.parent
        raise DataError(f"There is no folder {folder} (data.root); the nearest that exists is {near}.")
    if not folder.is_dir():
        raise DataError(f"data.root={folder} is a file; give the folder that holds the images.")
    return folder


def read_rows(file: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Read a small CSV raw: no cell is interpreted, `no`, `007` and `NA` stay what they are.

    Returns:
        (column names, rows).

    Raises:
        DataError: not UTF-8, or without a header.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{file} is not UTF-8; save it again as CSV UTF-8.") from None
    reader = csv.DictReader(text.splitlines(), delimiter=delimiter_of(text.partition("\n")[0]))
    columns = [column.strip() for column in reader.fieldnames or []]
    if not columns:
        raise DataError(f"{file} is empty; its first line names the columns.")
    refuse_twice(columns, file)
    reader.fieldnames = columns
    return columns, [{key: (row[key] or "").strip() for key in columns} for row in reader]


def refuse_twice(columns: Sequence[str], file: Path) -> None:
    """Refuse a table in which two columns have one name: which of them is meant cannot be known.

    Raises:
        DataError: names the columns.
    """
    twice = sorted(name for name, count in Counter(columns).items() if name and count > 1)
    if twice:
        raise DataError(f"{file} has several columns {some([repr(name) for name in twice])}; rename or remove all but one of each.")


def delimiter_of(header: str) -> str:
    """The character between the columns of a header line: comma, semicolon or tab."""
    return max(",;\t", key=header.count) if header else ","


@dataclass
class ClassNames:
    """Contents of a classnames.csv: text names and, where it has a label column, the order of the classes."""

    texts: dict[str, list[str]] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)


def read_classnames(file: Path) -> ClassNames:
    """Read columns folder, name and optionally label; a folder with several text names has several rows.

    Raises:
        DataError: a column is missing, a label is not a whole number, or a folder has two labels.
    """
    columns, rows = read_rows(file)
    missing = {"folder", "name"} - set(columns)
    if missing:
        raise DataError(f"{file} needs the columns folder and name; it has {some(columns)}.")
    texts: dict[str, list[str]] = defaultdict(list)
    labels: dict[str, int] = {}
    for row in rows:
        folder, name, label = clean(row["folder"]), clean(row["name"]), row.get("label", "")
        if not folder:
            continue
        if name and name not in texts[folder]:
            texts[folder].append(name)
        if label:
            try:
                number = int(label)
            except ValueError:
                raise DataError(
                    f"{file}: the label of '{folder}' is '{label}', not a whole number."
                ) from None
            if labels.setdefault(folder, number) != number:
                raise DataError(f"{file}: '{folder}' has the labels {labels[folder]} and {number}.")
    return ClassNames({folder: names for folder, names in texts.items() if names}, labels)


def find_classnames(name: str, folders: Sequence[Path]) -> ClassNames:
    """Read `data.classnames` from the first of the folders that holds it; nothing where the usual file is not there.

    Raises:
        DataError: a file that was named is missing, or it cannot be understood.
    """
    for folder in folders:
        if name and (folder / name).is_file():
            return read_classnames(folder / name)
    if name and name != CLASSNAMES:
        raise DataError(f"There is no {name} (data.classnames) in {' or '.join(map(str, dict.fromkeys(folders)))}.")
    return ClassNames()


def texts_for(
    class_names: Sequence[str], given: ClassNames, where: str
) -> tuple[dict[str, list[str]], list[str]]:
    """Text names of the classes and sentences about what does not fit.

    Args:
        class_names: the data's own names.
        given: what the classnames file says.
        where: name of that file, for the sentences.

    Returns:
        ({class name: text names}, sentences).
    """
    texts = {name: given.texts.get(name) or [default_text(name)] for name in class_names}
    report = []
    unknown = [name for name in given.texts if name not in texts]
    if unknown:
        report.append(f"{where} names classes without images: {some(unknown)}.")
    unnamed = [name for name in class_names if name not in given.texts]
    if given.texts and unnamed:
        report.append(f"{where} has no text name for {some(unnamed)}; their own names are used.")
    owners: dict[str, list[str]] = defaultdict(list)
    for name, phrases in texts.items():
        for phrase in {" ".join(phrase.lower().split()) for phrase in phrases}:
            owners[phrase].append(name)
    for phrase, names in sorted(owners.items()):
        if len(names) > 1:
            report.append(
                f"The classes {some(names)} share the text name '{phrase}': text alone cannot tell "
                "them apart."
            )
    return texts, report


def without_empty(class_names: Sequence[str], samples: Sequence[Sample]) -> tuple[list[str], list[Sample]]:
    """Drop classes without a sample and number the others again.

    Returns:
        (class names, samples).
    """
    present = sorted({sample.label for sample in samples})
    number = {label: i for i, label in enumerate(present)}
    return [class_names[label] for label in present], [replace(s, label=number[s.label]) for s in samples]
