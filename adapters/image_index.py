"""An index of a folder's images: their vectors, the adapter they were made with, and exact search by text or image."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from . import artifact, files
from ._version import __version__
from .errors import LimpetError, exhausted
from .pooling import MultiCrop, check_pooling, pooled
from .progress import Progress
from .sections import POOLINGS
from .vector_search import BLOCK, ExactSearch
from .whitening import unit

if TYPE_CHECKING:
    from .inference import Classifier, Source

FORMAT = 1
INFO, PATHS, VECTORS = "index.json", "paths.json", "vectors.npy"
_BATCH = 64
_ROUNDING = 1e-5  # by which a float32 vector of length 1 may be longer


@dataclass(frozen=True)
class Found:
    """An image that was found: its path, and its cosine similarity with the query in [-1, 1]."""

    path: str
    score: float


class ImageIndex:
    """Vectors of images, of length 1, in a folder of their own with the adapter that made them.

    Attributes:
        folder: where it lies.
        info: what it says about itself.
        paths: the images, in the order of the vectors.
        vectors: (N, D) float32, read from disk as needed.
    """

    def __init__(self, folder: Path, info: dict[str, Any], paths: list[str], vectors: NDArray[np.float32]) -> None:
        self.folder, self.info, self.paths, self.vectors = folder, info, paths, vectors
        self._classifier: Classifier | None = None

    @classmethod
    def load(cls, folder: str | Path) -> ImageIndex:
        """Open an index.

        Raises:
            LimpetError: there is none, it is damaged, or a newer Limpet wrote it.
        """
        folder = Path(folder).expanduser()
        if not (folder / INFO).is_file():
            there = "there is no such folder" if not folder.exists() else f"it holds no {INFO}"
            raise LimpetError(f"{folder} is not an index: {there}. Make one with: limpet index FOLDER")
        info, paths, vectors = _read(folder)
        return cls(folder, info, [str(Path(info["root"], path)) for path in paths], vectors)

    @property
    def classifier(self) -> Classifier:
        """The adapter the vectors were made with, loaded when first needed."""
        if self._classifier is None:
            from .inference import Classifier

            self._classifier = Classifier.load(self.folder)
        return self._classifier

    def search(self, query: Source, top: int = 10) -> list[Found]:
        """The images nearest to a text, or to an image (a PIL image, or a path as `Path`), nearest first.

        Of equally near images the one that comes first in the index stands first.

        Raises:
            LimpetError: the image cannot be read, the text is empty, or texts cannot be compared with these vectors.
        """
        vector = self._text(query) if isinstance(query, str) else self._image(query)
        numbers, scores = ExactSearch(self.vectors, longest=1 + _ROUNDING)(vector[None], top)
        return [Found(self.paths[n], s) for n, s in zip(numbers[0].tolist(), scores[0].tolist(), strict=True)]

    def _text(self, text: str) -> NDArray[np.float64]:
        if not text.strip():
            raise LimpetError("The text to search for is empty.")
        with torch.no_grad():
            feature = self.classifier.adapter.encode_text([text]).double().cpu().numpy()
        if feature.shape[1] != self.vectors.shape[1]:
            raise LimpetError(
                f"Texts of {self.classifier.backbone.spec.name} have {feature.shape[1]} dimensions, and the vectors of this index "
                f"(pooling {self.info['pooling']}) {self.vectors.shape[1]}: search with an image, or index with --pooling class."
            )
        vector: NDArray[np.float64] = unit(feature)[0]
        return vector

    def _image(self, image: Any) -> NDArray[np.float64]:
        transform = transform_of(self.classifier, self.info["pooling"])
        prepared = _prepared(image, transform)
        if isinstance(prepared, str):
            raise LimpetError(f"The image to search with cannot be read: {image}: {prepared}.")
        vector: NDArray[np.float64] = _vectors(self.classifier, prepared[None], self.info["pooling"])[0]
        return vector


def _read(folder: Path) -> tuple[dict[str, Any], list[str], NDArray[np.float32]]:
    """Description, relative paths and vectors of an index, checked.

    Raises:
        LimpetError: a file is damaged, or a newer Limpet wrote the index.
    """
    again = "Make it again with `limpet index`."
    try:
        info, paths = (json.loads((folder / name).read_text(encoding="utf-8")) for name in (INFO, PATHS))
    except RecursionError:
        raise LimpetError(f"The index {folder} is damaged: {INFO} or {PATHS} is nested too deeply. {again}") from None
    except (OSError, ValueError) as error:
        raise LimpetError(f"The index {folder} is damaged: {error}. {again}") from None
    try:  # not np.load: of a file of another kind it makes an archive or a pickle
        vectors = np.lib.format.open_memmap(folder / VECTORS, mode="r")
    except (OSError, ValueError, EOFError, OverflowError) as error:
        why = str(error).partition("\n")[0].rstrip(".")
        raise LimpetError(f"The index {folder} is damaged: {VECTORS} cannot be read ({why}). {again}") from None
    if not isinstance(info, dict) or not isinstance(info.get("format"), int):
        raise LimpetError(f"{folder / INFO} is not the description of an index. {again}")
    if info["format"] > FORMAT:
        raise LimpetError(f"{folder} has format {info['format']}, and this Limpet reads up to {FORMAT}. Install a newer one.")
    problem = _problem(info, paths, vectors) or _differing(folder, info)
    if problem:
        raise LimpetError(f"The index {folder} is damaged: {problem}. {again}")
    return info, paths, vectors


def _problem(info: dict[str, Any], paths: Any, vectors: NDArray[Any]) -> str:
    """What is wrong with the content of an index, or ""."""
    if not _is_path(info.get("root")):
        return f"the folder of its images ('root' in {INFO}) is no path"
    if info.get("pooling") not in POOLINGS:
        return f"'pooling' in {INFO} is none of {', '.join(POOLINGS)}"
    if not isinstance(paths, list) or not all(_is_path(path) for path in paths):
        return f"{PATHS} is not a list of paths"
    if vectors.ndim != 2 or vectors.dtype != np.float32 or not vectors.size:
        return f"{VECTORS} does not hold rows of numbers in float32"
    if not len(vectors) == len(paths) == info.get("images"):
        return f"{VECTORS} has {len(vectors)} rows, {PATHS} {len(paths)} paths, and {INFO} says {info.get('images')!r:.40} images"
    for start in range(0, len(vectors), BLOCK):
        part = vectors[start : start + BLOCK]
        wrong = np.flatnonzero(~(np.einsum("nd,nd->n", part, part, dtype=np.float64) <= (1 + _ROUNDING) ** 2))  # NaN, too
        if len(wrong):
            return f"row {start + int(wrong[0])} of {VECTORS} is no vector of length 1"
    return ""


def _is_path(value: Any) -> bool:
    """Whether a value is a text that may stand for a file."""
    try:
        return isinstance(value, str) and bool(value) and b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:  # half a pair of surrogates: no name read from disk has one
        return False


def _differing(folder: Path, info: dict[str, Any]) -> str:
    """What is wrong with files that differ from what was written, or ""; indexes of old have no checksums."""
    sums = info.get("sha256", {})
    if not isinstance(sums, dict):
        return f"'sha256' in {INFO} is not a list of checksums"
    for name in (PATHS, VECTORS):
        if name in sums and _checksum(folder / name) != sums[name]:
            return f"the checksum of {name} is another than {INFO} says"
    return ""


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def build(
    images: Sequence[str], root: Path, target: Path, classifier: Classifier, pooling: str = "class", source: str = ""
) -> tuple[ImageIndex, list[tuple[str, str]]]:
    """Make an index of images; an index that lies at `target` is replaced once the new one is whole.

    Args:
        images: paths of the images.
        root: folder they lie below.
        target: folder of the index.
        classifier: the adapter whose features are taken, with its own preprocessing.
        pooling: one of `POOLINGS`.
        source: what the adapter comes from, for the record.

    Returns:
        The index, and (path, reason) of each image that could not be read.

    Raises:
        LimpetError: no image can be read, or `target` is something else than an index.
    """
    if pooling not in POOLINGS:
        raise LimpetError(f"There is no pooling '{pooling}'; known are {', '.join(POOLINGS)}.")
    check_pooling(classifier.adapter, pooling)
    check_target(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = files.beside(target)
    beside.mkdir()
    try:
        kept: list[str] = []
        broken: list[tuple[str, str]] = []
        blocks: list[NDArray[np.float32]] = []
        for names, vectors, failures in _encoded(images, classifier, pooling):
            kept += names
            broken += failures
            blocks.append(vectors.astype(np.float32))
        if not kept:
            raise LimpetError(f"None of the {len(images)} images in {root} can be read; the first: {': '.join(broken[0])}.")
        np.save(beside / VECTORS, np.concatenate([block for block in blocks if len(block)]), allow_pickle=False)
        base = root.resolve()
        relative = [os.path.relpath(Path(name).absolute(), base) for name in kept]
        (beside / PATHS).write_text(json.dumps(relative), encoding="utf-8")  # ASCII: also for names that are no valid text
        info = {
            "format": FORMAT, "limpet": __version__, "root": str(base), "images": len(kept), "pooling": pooling,
            "source": source, "backbone": classifier.backbone.spec.name, "unreadable": [list(pair) for pair in broken],
            "sha256": {name: _checksum(beside / name) for name in (PATHS, VECTORS)},
        }  # fmt: skip
        artifact.save(classifier.adapter, beside, {"recipe": source})
        (beside / INFO).write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")
        _swap(beside, target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return ImageIndex.load(target), broken


def check_target(target: Path) -> None:
    """Refuse to put an index in the place of something else.

    Raises:
        LimpetError: `target` is a file, or a folder with something else in it.
    """
    if target.exists() and not (target / INFO).is_file() and not (target.is_dir() and not any(target.iterdir())):
        raise LimpetError(f"{target} is there already and is not an index; give another folder with --out.")


def _swap(new: Path, target: Path) -> None:
    """Put a finished folder in the place of another; the other stays if that fails."""
    old = new.with_suffix(".old")
    had = target.exists()
    if had:
        target.rename(old)
    try:
        new.rename(target)
    except BaseException:  # also Ctrl-C
        if had and not target.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def transform_of(classifier: Classifier, pooling: str) -> Any:
    """From a PIL image to what a pooling reads, with the adapter's own preprocessing."""
    return MultiCrop(classifier.transform) if pooling == "multi_crop" else classifier.transform


def _encoded(
    images: Sequence[str], classifier: Classifier, pooling: str
) -> Iterator[tuple[list[str], NDArray[np.float64], list[tuple[str, str]]]]:
    """(paths, vectors, unreadable ones) of some images after the other; decoding runs ahead."""
    transform = transform_of(classifier, pooling)
    parts = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
    with ThreadPoolExecutor(4) as pool, Progress("Encoding images", len(images)) as progress:
        ahead = [pool.submit(_prepared, Path(name), transform) for name in (parts[0] if parts else ())]
        for number, part in enumerate(parts):
            waiting, following = ahead, parts[number + 1] if number + 1 < len(parts) else ()
            ahead = [pool.submit(_prepared, Path(name), transform) for name in following]
            ready = [future.result() for future in waiting]
            good = [(name, image) for name, image in zip(part, ready, strict=True) if not isinstance(image, str)]
            bad = [(name, reason) for name, reason in zip(part, ready, strict=True) if isinstance(reason, str)]
            vectors = _vectors(classifier, torch.stack([image for _, image in good]), pooling) if good else np.zeros((0, 0))
            yield [name for name, _ in good], vectors, bad
            progress.advance(len(part))


def _prepared(image: Any, transform: Any) -> Any:
    """Network input of an image, or a sentence where it cannot be read."""
    try:
        if isinstance(image, Path):
            image = importlib.import_module(".datamodules.images", __package__).read_image(image)
        return transform(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, MemoryError, EOFError) as error:
        if exhausted(error):  # says nothing about the image
            raise
        return " ".join(str(error).split()) or type(error).__name__


def _vectors(classifier: Classifier, images: torch.Tensor, pooling: str) -> NDArray[np.float64]:
    """Vectors (B, D) of length 1 of prepared images."""
    batch = {"image": images.to(classifier.backbone.device)}
    return unit(pooled(classifier.adapter, batch, pooling).double().cpu().numpy())
