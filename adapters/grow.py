"""Growing a fitted adapter: adding, removing and renaming classes; each writes a new version of its artefact."""

from __future__ import annotations

import hashlib
import importlib
import random
import unicodedata
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import artifact
from .errors import LimpetError, NeedsImages, nearest
from .predict import SUFFIXES, find_images

if TYPE_CHECKING:
    from .adapter import Adapter, Batch
    from .classes import ClassSet
    from .inference import Classifier

CARRIED = ("recipe", "split_hash", "augment", "seed", "calibration")  # of the first version's record; its metrics are not the new ones


def add_classes(run_dir: Path, names: Sequence[str], shots: Path | None = None) -> tuple[Path, Classifier]:
    """Add classes to the newest artefact of a run and write the next version.

    Args:
        run_dir: a run.
        names: names of the new classes.
        shots: a folder with one sub-folder of images for each of them; of a single class, also the images themselves.

    Returns:
        The folder of the new version, and the classifier.

    Raises:
        NeedsImages: the method needs images and there are none.
        LimpetError: a name exists already, or the folder does not hold what was asked for. Nothing is written then.
    """
    from .inference import Classifier

    images = find_shots(names, shots) if shots is not None else None
    classifier = Classifier.load(run_dir)
    try:
        classifier.add_classes(names, images)
    except NeedsImages as error:
        hint = " Give a folder of them: --shots DIR." if shots is None else ""
        raise NeedsImages(f"{error}{hint}") from None
    return classifier.save(run_dir), classifier


def remove_classes(run_dir: Path, names: Sequence[str]) -> tuple[Path, Classifier]:
    """Remove classes from the newest artefact of a run and write the next version."""
    from .inference import Classifier

    classifier = Classifier.load(run_dir)
    classifier.remove_classes(names)
    return classifier.save(run_dir), classifier


def rename_classes(run_dir: Path, words: Sequence[str], reword: bool = False) -> tuple[Path, Classifier]:
    """Rename classes, given as OLD=NEW, in the newest artefact of a run and write the next version."""
    from .inference import Classifier

    classifier = Classifier.load(run_dir)
    pairs = [_pair(word, classifier.classes) for word in words]
    twice = [old for i, (old, _) in enumerate(pairs) if old in {earlier for earlier, _ in pairs[:i]}]
    if twice:
        raise LimpetError(f"'{twice[0]}' is given more than one new name: write each OLD=NEW once.")
    classifier.rename_classes(dict(pairs), reword)
    return classifier.save(run_dir), classifier


def _pair(word: str, known: Sequence[str]) -> tuple[str, str]:
    """OLD=NEW as (old, new); OLD may itself hold an equals sign."""
    splits = [(word[:i], word[i + 1 :]) for i, sign in enumerate(word) if sign == "="]
    if not splits:
        raise LimpetError(f"'{word}' does not say what the new name is: write OLD=NEW.")
    old, new = next((pair for pair in splits if pair[0] in known), splits[0])
    if not new.strip():
        raise LimpetError(f"'{word}' gives an empty name: write OLD=NEW.")
    return old, new


def find_shots(names: Sequence[str], folder: Path) -> dict[str, list[str]]:
    """Images of new classes: of a sub-folder named like each, or, for a single class, those right in the folder.

    Raises:
        LimpetError: there is no such folder, no sub-folder for a class, or no image in it.
    """
    if folder.is_file():
        raise LimpetError(f"{folder} is a file: --shots takes a folder of images.")
    if not folder.is_dir():
        raise LimpetError(f"There is no folder {folder} to take images from.")
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise LimpetError(f"'{twice[0]}' is named twice: give each new class once.")
    below = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    found: dict[str, list[str]] = {}
    for name in names:
        matching = [p for p in below if p.name == name] or [p for p in below if _plain(p.name) == _plain(name)]
        if matching:
            found[name] = find_images(str(matching[0]))
            continue
        loose = sorted(str(p) for p in folder.iterdir() if p.is_file() and p.suffix.lower() in SUFFIXES)
        if len(names) == 1 and loose:
            found[name] = loose
            continue
        there = ", ".join(p.name for p in below[:8]) or "no sub-folder"
        hint = nearest(name, [p.name for p in below])
        raise LimpetError(f"{folder} holds no images of '{name}': a sub-folder of that name is wanted.{hint} Found: {there}.")
    return found


def _plain(name: str) -> str:
    """A name as it is compared with folders, whose accents file systems spell in one sign or in two."""
    return unicodedata.normalize("NFC", name).replace("_", " ").replace("-", " ").casefold().strip()


def shot_batches(
    adapter: Adapter, classes: ClassSet, images: Mapping[str, Iterable[Any]], augment: Mapping[str, Any] | None = None,
    seed: int = 1, batch_size: int = 64,
) -> list[Batch]:  # fmt: skip
    """Training batches of new classes, prepared as those of the fit: the same transforms, as many augmented views.

    Args:
        adapter: a fitted adapter.
        classes: present and new classes; labels count in these.
        images: paths or PIL images of each new class.
        augment: preset, views and scale of the fit; None: the plain view alone.
        seed: of the augmented views.
        batch_size: images encoded at once.

    Raises:
        NeedsImages: no image of a class can be read. A warning lists the unreadable ones otherwise.
    """
    backbone = adapter.backbone
    plain = backbone.transform(train=False)
    settings = importlib.import_module(".datamodules.configs", __package__).AugmentConfig(**dict(augment or {"preset": "none"}))
    varied = backbone.transform(train=True, augment=settings) if settings.preset != "none" else None
    views = max(int(settings.views), 1) if varied else 1
    features = adapter.needs(adapter.config, backbone.spec) == "features"
    batches: list[Batch] = []
    lost: list[str] = []
    index = 0
    for name, sources in images.items():
        readable, label = 0, classes.index(name)
        rows: list[tuple[str, Tensor, list[Tensor]]] = []
        for source in sources:
            path, image = _read(source, index)
            if isinstance(image, str):
                lost.append(f"{path}: {image}")
                continue
            made = [_varied(varied, image, seed, view, f"{name}/{readable}") for view in range(views)] if varied else []
            rows.append((path, plain(image), made))
            readable, index = readable + 1, index + 1
            if len(rows) == batch_size:
                batches.append(_batch(adapter, rows, label, index, features))
                rows = []
        if rows:
            batches.append(_batch(adapter, rows, label, index, features))
        if not readable:
            why = f": {lost[-1].rstrip('.')}" if lost else ""
            raise NeedsImages(f"There is no image of '{name}' that can be read{why}.")
    if lost:
        warnings.warn(f"{len(lost)} images could not be read and were left out: {'; '.join(lost[:5])}", UserWarning, stacklevel=2)
    return batches


def _read(source: Any, number: int) -> tuple[str, Any]:
    """(path, RGB image), or (path, why it cannot be read)."""
    if hasattr(source, "convert"):
        return f"image {number}", source.convert("RGB")
    try:
        return str(source), importlib.import_module(".datamodules.images", __package__).read_image(Path(source)).convert("RGB")
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        return str(source), " ".join(str(error).split()) or type(error).__name__


def _varied(transform: Any, image: Any, seed: int, view: int, which: str) -> Tensor:
    """An augmented view that depends on seed, view and image alone."""
    number = int.from_bytes(hashlib.sha256(f"{seed}|{view}|{which}".encode()).digest()[:7], "big")
    state = random.getstate()
    with torch.random.fork_rng(devices=[]):
        random.seed(number)
        torch.default_generator.manual_seed(number)
        try:
            result: Tensor = transform(image)
        finally:
            random.setstate(state)
    return result


@torch.no_grad()
def _batch(adapter: Adapter, rows: Sequence[tuple[str, Tensor, list[Tensor]]], label: int, end: int, features: bool) -> Batch:
    count = len(rows)
    batch: dict[str, Any] = {
        "path": [path for path, _, _ in rows],
        "index": torch.arange(end - count, end),
        "label": torch.full((count,), label, dtype=torch.long),
    }
    images = torch.stack([image for _, image, _ in rows])
    if not features:
        batch["image"] = images
        return batch

    def encode(pictures: Tensor) -> Tensor:
        return adapter.backbone.encode_image(pictures.to(adapter.backbone.device), normalize=False).cpu().to(adapter.dtype)

    batch["feature"] = encode(images)
    per_view = zip(*(made for _, _, made in rows), strict=True)
    encoded = [encode(torch.stack(list(pictures))) for pictures in per_view]
    batch["views"] = torch.stack(encoded, dim=1) if encoded else batch["feature"][:, None]
    return batch


def record(info: Mapping[str, Any], history: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> dict[str, Any]:
    """What a grown version says about itself: where it comes from and what was changed since the fit."""
    kept = {key: info[key] for key in CARRIED if key in info}
    return {**kept, "history": [*info.get("history", ()), *history], "notes": list(notes)}


def names_now(history: Iterable[Mapping[str, Any]], names: Iterable[str]) -> dict[str, str]:
    """Present name of each class that the data know, after all changes; classes that were removed are missing."""
    now = {name: name for name in names}
    for step in history:
        now = {old: new for old, new in now.items() if new not in step.get("removed", ())}
        now = {old: step.get("renamed", {}).get(new, new) for old, new in now.items()}
    return now


def report(run: str, folder: Path, before: int, classifier: Classifier) -> str:
    """Sentences for the screen."""
    count = len(classifier.classes)
    older = [f"v{n}" for n, path in artifact.versions(folder.parent.parent) if path != folder]
    lines = [f"{before} -> {count} classes: {', '.join(classifier.classes[:12])}{', ...' if count > 12 else ''}"]
    lines += [f"note: {note}" for note in classifier.adapter.notes]
    kept = "stay as they were" if len(older) > 1 else "stays as it was"
    lines += [f"Wrote {folder} ({', '.join(older)} {kept}).", f"next: limpet predict {run} PATH"]
    return "\n".join(lines)
