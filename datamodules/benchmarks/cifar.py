"""What CIFAR-10 and CIFAR-100 share: the Python batches through torchvision, or ZIP archives of class folders."""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError
from ..images import is_image_name
from ..stored import Member, Row, members
from .reading import Entry, Found, NotThere


def read_cifar(folder: Path, kind: str, batches: str) -> Found:
    """Read cifarN_train.zip and cifarN_test.zip where they are, else the official Python batches.

    Args:
        folder: where either lies.
        kind: "cifar10" or "cifar100".
        batches: folder of the Python batches.
    """
    archives = {split: folder / f"{kind}_{split}.zip" for split in ("train", "test")}
    if all(file.is_file() for file in archives.values()):
        found = [entry for split, file in archives.items() for entry in zipped(file, split)]
        return Found(found, split=" and ".join(file.name for file in archives.values()))
    if (folder / batches).is_dir():
        return _from_batches(folder, kind)
    raise NotThere(folder / batches)


def zipped(archive: Path, split: str) -> list[Entry]:
    """Images of a ZIP archive by the folder they lie in; sorted."""
    names = sorted(name for name in members(archive) if "/" in name and is_image_name(name.rpartition("/")[2]))
    if not names:
        raise DataError(f"{archive} holds no class folders with images, as apple/0001.png is one.")
    return [
        Entry(f"{archive.name}/{name}", name.split("/")[-2], split, extra={"stored": Member(archive, name)})
        for name in names
    ]


def _from_batches(folder: Path, kind: str) -> Found:
    import torchvision.datasets as published

    entries, order = [], []
    for split in ("train", "test"):
        try:
            images = getattr(published, kind.upper())(str(folder), train=split == "train")
        except RuntimeError as error:  # torchvision compares the checksums of the files
            raise DataError(f"The Python batches of {kind.upper()} in {folder} are not whole: {error}") from error
        order = list(images.classes)
        entries += [
            Entry(f"{split}/{number:05d}", order[label], split, extra={"stored": Row(images.data, number)})
            for number, label in enumerate(images.targets)
        ]
    return Found(entries, order, split="the official training and test batches")
