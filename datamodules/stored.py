"""Images that are not files of their own: members of a ZIP archive, rows of an array."""

from __future__ import annotations

import functools
import hashlib
import os
import threading
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .errors import DataError
from .images import UnreadableImage, read_image
from .listing import Sample
from .loading import read_sample

_lock = threading.Lock()


@dataclass(frozen=True)
class Member:
    """An image file in a ZIP archive."""

    archive: Path
    name: str

    def image(self) -> Image.Image:
        """Decode it.

        Raises:
            UnreadableImage: it cannot be.
        """
        return read_image(f"{self.archive}/{self.name}", self.content())

    def key(self) -> str:
        """SHA-256 (hex) of the bytes of the file."""
        return _member_key(self, self.archive.stat().st_mtime_ns)

    def content(self) -> bytes:
        """The bytes of the file.

        Raises:
            UnreadableImage: they cannot be read.
        """
        try:
            with _lock:  # threads share one descriptor; processes do not
                return _archive(self.archive, self.archive.stat().st_mtime_ns, os.getpid()).read(self.name)
        except (OSError, KeyError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
            raise UnreadableImage(f"{self.archive}/{self.name}", str(error) or "it cannot be read") from error


@dataclass(frozen=True, eq=False)
class Row:
    """An image in an array (N, H, W) or (N, H, W, 3) of bytes."""

    array: np.ndarray[Any, Any]
    number: int

    def image(self) -> Image.Image:
        """It as RGB."""
        return Image.fromarray(self.array[self.number]).convert("RGB")

    def key(self) -> str:
        """SHA-256 (hex) of its shape and pixels."""
        row = np.ascontiguousarray(self.array[self.number])
        return hashlib.sha256(f"{row.shape} {row.dtype}".encode() + row.tobytes()).hexdigest()


def read_stored(sample: Sample) -> Image.Image:
    """Decode a sample: what is under `stored` in its extras, else its file.

    Raises:
        UnreadableImage: it cannot be decoded.
    """
    stored: Member | Row | None = sample.extra.get("stored")
    return read_sample(sample) if stored is None else stored.image()


def members(archive: Path) -> list[str]:
    """Names of the files in a ZIP archive.

    Raises:
        DataError: it is not one.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            return [info.filename for info in opened.infolist() if not info.is_dir()]
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{archive} cannot be read as a ZIP archive: {error}.") from error


@functools.lru_cache(4)
def _archive(file: Path, changed: int, process: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(file)


@functools.lru_cache(2**18)
def _member_key(member: Member, changed: int) -> str:
    return hashlib.sha256(member.content()).hexdigest()
