"""CIFAR-100: 100 classes, 32 pixels."""

from __future__ import annotations

from pathlib import Path

from .cifar import read_cifar
from .reading import Found


def read(folder: Path, variant: str | None = None) -> Found:
    """Read cifar100_train.zip and cifar100_test.zip, or cifar-100-python/."""
    return read_cifar(folder, "cifar100", "cifar-100-python")
