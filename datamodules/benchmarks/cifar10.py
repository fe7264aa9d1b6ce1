"""CIFAR-10: 10 classes, 32 pixels."""

from __future__ import annotations

from pathlib import Path

from .cifar import read_cifar
from .reading import Found


def read(folder: Path, variant: str | None = None) -> Found:
    """Read cifar10_train.zip and cifar10_test.zip, or cifar-10-batches-py/."""
    return read_cifar(folder, "cifar10", "cifar-10-batches-py")
