"""Where images to be answered about come from: files, folders, patterns and zip archives, named but not yet read."""

from __future__ import annotations

import glob
import importlib
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeAlias

from .errors import LimpetError, exhausted

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".pnm",
     ".tga", ".jp2", ".avif"]
)  # fmt: skip
MEMBER_BYTES = 2**29  # an unpacked member larger than this is refused: archives can promise any size
SEVERAL_FRAMES = "several_frames"  # key of an image's `info` where only its first frame or page was taken


@dataclass(frozen=True)
class ZipMember:
    """An image inside a zip archive; its text is `archive.zip/name/inside.png`.

    Attributes:
        archive: the open archive, shared by its members.
        place: path of the archive as given.
        name: name inside.
        problem: why it is not read, as a sentence; None where it can be tried.
    """

    archive: zipfile.ZipFile
    place: str
    name: str
    problem: str | None = None

    def __str__(self) -> str:
        return f"{self.place}/{self.name}"

    def read(self) -> bytes:
        """The unpacked bytes; nothing is written to disk.

        Raises:
            ValueError: It cannot be unpacked; says why.
        """
        if self.problem is not None:
            raise ValueError(self.problem)
        try:
            return self.archive.read(self.name)
        except Exception as error:  # zlib and lzma have errors of their own beside those of zipfile
            if exhausted(error):  # says nothing about the image
                raise
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise ValueError(f"It cannot be unpacked: {reason}.") from error


Located: TypeAlias = "str | ZipMember"


def open_image(source: Any) -> Image:
    """Decode a path, a `ZipMember` or a PIL image to 8-bit RGB.

    Raises:
        ValueError, OSError: It cannot be read; the text says why.
    """
    if hasattr(source, "convert"):
        image: Image = source.convert("RGB")
        return image
    images = importlib.import_module(".datamodules.images", __package__)
    if isinstance(source, ZipMember):
        image = images.read_image(str(source), source.read())
    else:
        image = images.read_image(Path(source))
    return image


def find_images(paths: str | Sequence[str]) -> list[str]:
    """Return the image files at `paths`, without the members of archives; see `find_sources`."""
    return [source for source in find_sources(paths) if isinstance(source, str)]


def find_sources(paths: str | Sequence[str]) -> list[Located]:
    """Return the images at each path: a file, every image below a folder (links to folders once), a zip, or a pattern's files.

    Raises:
        LimpetError: If one of the paths has none.
    """
    found: list[Located] = []
    for path in [paths] if isinstance(paths, str) else paths:
        found += _at(path)
    unique = {str(source): source for source in found}
    return list(unique.values())


def _at(path: str) -> list[Located]:
    if not path.strip():
        raise LimpetError("The name of the images is empty: name a file, a folder (. is this one), a zip or a pattern.")
    place = Path(path).expanduser()
    if place.is_file():
        return _file(str(place))
    if place.is_dir():
        below: list[Located] = list(_below(place))
        if not below:
            raise LimpetError(f"No images found in {place}: looked below it for {', '.join(sorted(SUFFIXES))}.")
        return below
    matches = sorted(glob.glob(str(place), recursive=True))  # noqa: PTH207 - the pattern may be absolute
    found: list[Located] = []
    for name in matches:
        found += _file(name) if Path(name).is_file() else []
    found += [image for folder in matches if Path(folder).is_dir() for image in _below(Path(folder))]
    if not found:
        raise LimpetError(f"No images found: {path} is neither a file nor a folder, and as a pattern it matches none.")
    return found


def _file(name: str) -> list[Located]:
    return list(_members(name)) if Path(name).suffix.lower() == ".zip" else [name]


def _below(folder: Path) -> Iterator[str]:
    """Images below a folder in order of name; links are followed, each real folder once."""
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in sorted(files):
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith("._"):
                yield str(Path(parent, name))


def _members(place: str) -> Iterator[ZipMember]:
    """The images of an archive in order of name.

    Raises:
        LimpetError: If it is no zip archive, or holds no images.
    """
    try:
        archive = zipfile.ZipFile(place)
        entries = sorted(archive.infolist(), key=lambda entry: entry.filename)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise LimpetError(f"{place} cannot be read as a zip archive: {' '.join(str(error).split()).rstrip('.')}.") from None
    found = 0
    for entry in entries:
        path = PurePosixPath(entry.filename.replace("\\", "/"))
        if entry.is_dir() or path.suffix.lower() not in SUFFIXES | {".zip"}:
            continue
        if "__MACOSX" in path.parts or path.name.startswith("._"):
            continue
        found += 1
        yield ZipMember(archive, place, entry.filename, _problem(entry, path))
    if not found:
        raise LimpetError(f"No images found in {place}: it has {len(entries)} members, none of which is named like an image.")


def _problem(entry: zipfile.ZipInfo, path: PurePosixPath) -> str | None:
    if path.suffix.lower() == ".zip":
        return "It is an archive inside the archive: unpack it first."
    if ".." in path.parts or path.is_absolute() or path.parts[0].endswith(":"):
        return "Its path leads out of the archive, as no honest archive's does: it is not read."
    if entry.flag_bits & 0x1:
        return "It is encrypted: unpack the archive with its password first."
    if entry.file_size > MEMBER_BYTES:
        return f"It would take {entry.file_size / 2**20:,.0f} MiB unpacked; the limit is {MEMBER_BYTES // 2**20} MiB."
    return None
