"""What a training was begun with, in split.json: a resumed one that differs in it would be a mixture of two."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__, artifact, files
from .errors import RunError
from .image_keys import image_keys
from .nodes import flat

if TYPE_CHECKING:
    from .recipe import Recipe
    from .session import Session

SPLIT, BEGUN = "split.json", "begun"
MOST_READ = 10_000  # images of a split whose content is read; of more, only the sizes of their files are compared
# Settings that may change on the way: where things lie (what lies there is compared), and what is done how fast and said where.
FREE = ("run.", "backbone.name", "backbone.pretrained", "backbone.text_memory", "init_from", "trainer.accelerator", "trainer.strategy",
        "trainer.threads", "trainer.loggers", "trainer.log_every", "evaluate.batch_size")  # fmt: skip
FREE_ENDS = (".root", ".table", ".image_dir", ".num_workers", ".download")
_LONGEST = 80


def write(manifest: Mapping[str, Any], session: Session, run_dir: Path) -> None:
    """Write split.json: the images by name (`manifest`), what they show, the backbone, and the settings."""
    about = {
        "limpet": __version__,
        "settings": settings(session.recipe),
        "images": images(session),
        "backbone": artifact.about_backbone(session.backbone),
        "start": start(session),
    }
    files.write_json(run_dir / SPLIT, {**manifest, BEGUN: about})


def settings(recipe: Recipe) -> dict[str, Any]:
    """The settings that a result depends on, by dotted key."""
    plain = json.loads(json.dumps(recipe.to_dict(), default=str))
    return {key: value for key, value in flat(plain).items() if not key.startswith(FREE) and not key.endswith(FREE_ENDS)}


def images(session: Session) -> dict[str, str]:
    """A digest of the training and of the validation images: of what they show, or of the sizes of very many files."""
    parts = [part.data for part in session.plan.stream.sessions] if session.plan is not None else [session.data]
    return {split: _digest(parts, split) for split in ("train", "val")}


def start(session: Session) -> str | None:
    """A digest of the adapter that the training goes on from; None where it begins anew."""
    if session.recipe.init_from is None:
        return None
    whole = hashlib.sha256()
    for file in sorted(path for path in Path(session.recipe.init_from).iterdir() if path.is_file()):
        whole.update(f"{file.name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode("utf-8", "surrogateescape"))
    return whole.hexdigest()


def _digest(parts: Sequence[Any], split: str) -> str:
    whole = hashlib.sha256()
    read = sum(len(data.samples[split]) for data in parts) <= MOST_READ
    for data in parts:
        samples = data.samples[split]
        kind = f"{type(data).__module__}.{type(data).__qualname__}"
        found = image_keys(samples, data.content_key, kind) if read else [_size(sample.file) for sample in samples]
        lines = (f"{sample.path}\0{key or ''}\n" for sample, key in zip(samples, found, strict=True))
        for line in sorted(lines):
            whole.update(line.encode("utf-8", "surrogateescape"))
    return f"{'content' if read else 'sizes'}:{whole.hexdigest()}"


def _size(file: Path | None) -> str | None:
    try:
        return None if file is None else str(file.stat().st_size)
    except (OSError, ValueError):
        return None


def read(run_dir: Path) -> dict[str, Any] | None:
    """The run's split.json; None where there is none yet.

    Raises:
        RunError: it is damaged.
    """
    path = run_dir / SPLIT
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        sound = isinstance(found["hash"], str) and isinstance(_begun(found), Mapping)
        sound = sound and all(isinstance(_begun(found).get(key) or {}, Mapping) for key in ("settings", "images", "backbone"))
        sound = sound and isinstance((_begun(found).get("backbone") or {"spec": {}}).get("spec"), Mapping)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise RunError(
            f"{path} is damaged: it does not say which images the run was started with, so that resuming might mix two "
            "experiments. Start a new run with `limpet fit`."
        )
    return dict(found)


def _begun(record: Mapping[str, Any]) -> Any:
    return record.get(BEGUN, {})  # runs of before have none


def check_settings(record: Mapping[str, Any], recipe: Recipe, run_dir: Path) -> None:
    """Refuse a recipe.yaml that is not the one the training was begun with.

    Raises:
        RunError: names the first setting that differs.
    """
    before, now = _begun(record).get("settings"), settings(recipe)
    if before is None:
        return
    same_version = _begun(record).get("limpet") == __version__  # a newer one may know further settings
    for key in dict.fromkeys([*now, *before]):
        differs = before[key] != now[key] if key in before and key in now else key in before or same_version
        if differs:
            told = [_word(tree[key]) if key in tree else "not set" for tree in (before, now)]
            raise RunError(
                f"{run_dir / 'recipe.yaml'} changed since the run was started: {key} was {told[0]} and is {told[1]} now. "
                "Resuming would mix two trainings: put it back, or start a new run with `limpet fit`."
            )


def check_images(record: Mapping[str, Any], session: Session, run_dir: Path) -> None:
    """Refuse other images under the names of those that the training was begun with.

    Raises:
        RunError: training or validation images differ.
    """
    before = _begun(record).get("images")
    if before is None:
        return
    where = getattr(session.data.config, "root", None) or session.data.config.name
    for split, now in images(session).items():
        if before.get(split, now) != now:
            what = {"train": "training", "val": "validation"}[split]
            raise RunError(
                f"The data changed since {run_dir} was started: the {what} images in {where} have the names they had, and "
                "at least one is another image now. Resuming would mix two experiments: put the images back, or start a new "
                "run with `limpet fit`."
            )


def check_weights(record: Mapping[str, Any], session: Session, run_dir: Path) -> None:
    """Refuse another backbone, or another adapter to go on from, than those that the training was begun with.

    Raises:
        ArtifactError: says what differs about the backbone.
        RunError: the adapter is another one.
    """
    before = _begun(record)
    if before.get("backbone"):
        artifact.check_backbone(before, session.backbone, run_dir)
    if "start" in before and before["start"] != start(session):
        raise RunError(
            f"The adapter that {run_dir} goes on from changed since the run was started (init_from is {session.recipe.init_from} "
            "now). Resuming would mix two trainings: put it back, or start a new run with `limpet fit`."
        )


def _word(value: Any) -> str:
    """A setting's value as the recipe has it, or its beginning."""
    text = value if isinstance(value, str) and value.isprintable() and value else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
