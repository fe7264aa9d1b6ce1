"""`limpet export`: a fitted adapter in a form that others use, with the proof that it answers alike."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__, artifact, files
from .calibration import Calibration
from .errors import ArtifactError, LimpetError, nearest
from .export_card import write_card
from .export_job import CannotExport, Job, Written
from .export_parity import Parity, compare, in_batches, proof_images

if TYPE_CHECKING:
    from .backbone import FrozenClip

TARGETS = {
    "adapter": "the adapter alone, for Limpet: safetensors and JSON",
    "merged": "the trained towers as plain open_clip weights",
    "onnx": "the image tower with the adapter, for ONNX Runtime",
    "peft": "LoRA as a peft folder, for Hugging Face's CLIPModel",
    "weights": "one vector a class with names, npz and CSV",
    "hub-folder": "what huggingface_hub.upload_folder expects",
}
FOLDER, DESCRIPTION = "exports", "export.json"


def export(
    run: Path,
    target: str,
    out: Path | None = None,
    *,
    version: int | None = None,
    beside: bool = False,
    images: Sequence[str] = (),
) -> tuple[Path, Parity]:
    """Export a run's adapter.

    Args:
        run: a run folder, or the folder of an artefact.
        target: one of `TARGETS`.
        out: a folder that does not exist yet; by default `exports/<target>` in the run's folder, numbered where taken.
        version: of the adapter; the newest by default.
        beside: with "onnx", put the class weights beside the model instead of into it.
        images: paths of images to compare answers on; drawn ones by default.

    Returns:
        The folder, and how far its answers lie from the adapter's.

    Raises:
        LimpetError: an unknown target, a folder that exists, a method that the target cannot hold, or answers that differ.
            Nothing is left behind then.
    """
    writer = writer_of(target)
    if beside and target != "onnx":
        raise LimpetError(f"--beside is for --to onnx; --to {target} has no model to put class weights into.")
    if out is not None and (out.exists() or out.is_symlink()):
        raise LimpetError(f"{out} is there already, and nothing is written over. Give another folder, or remove it.")
    job = load_job(run, version, images, beside)
    needed = job.adapter.image_alone(job.adapter.config, job.backbone.spec)
    if needed and target not in ("adapter", "hub-folder"):
        raise CannotExport(f"{needed} Use --to adapter or --to hub-folder, which Limpet loads again.")
    place = out or run_folder(job.artefact) / FOLDER / target
    part = files.beside(place)
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise LimpetError(f"Nothing can be written in {place.parent}: {error.strerror or error}. Give another --out.") from None
    try:
        written = writer(job, part)
        parity = compare(job.expected, in_batches(written.answer, job.images))
        if not parity.holds:
            raise LimpetError(
                f"The export is not written: its answers are not those of the adapter ({parity}). This is a mistake of "
                f"Limpet's, or of a library it uses here; --to adapter keeps the adapter as it is."
            )
        _describe(job, target, written, parity, part)
        return _settle(part, place, numbered=out is None), parity
    except LimpetError:
        raise
    except OSError as error:
        raise LimpetError(f"The export cannot be written to {place}: {error.strerror or error}.") from error
    except Exception as error:  # a method may ask for more than an image, and exporters raise anything
        reason = " ".join(str(error).split())[:300]
        raise CannotExport(
            f"--to {target} does not work for '{job.method}' on {job.backbone.spec.name} ({type(error).__name__}: {reason}). The "
            f"adapter itself, {job.artefact}, can be copied as it is (limpet --debug export ... shows more)."
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if out is None:
            with suppress(OSError):
                place.parent.rmdir()  # where nothing was written and nothing else is there


def load_job(run: Path, version: int | None = None, images: Sequence[str] = (), beside: bool = False) -> Job:
    """Load an adapter for an export: on the CPU, on a backbone in float32, so that every export starts from the same numbers."""
    folder = artifact.locate(run, version)
    content = artifact.load_info(folder)
    with warnings.catch_warnings():
        if content["backbone"]["spec"].get("precision") != "fp32":
            warnings.filterwarnings("ignore", message=".*precision")  # the card says it
        adapter = artifact.load(folder, _backbone(content, folder))
    adapter.requires_grad_(False)
    return Job(adapter, folder, content, proof_images(adapter, images), beside)


def _backbone(content: dict[str, Any], folder: Path) -> FrozenClip:
    from .backbone import FrozenClip
    from .backbone_spec import request

    spec = content["backbone"]["spec"]
    try:
        return FrozenClip.load(request(spec, precision="fp32"))
    except LimpetError as error:
        raise ArtifactError(f"The backbone of the adapter in {folder} cannot be loaded: {error}") from error


def run_folder(artefact: Path) -> Path:
    """The run that an artefact belongs to, or the folder around it where it stands alone."""
    return artefact.parent.parent if artefact.parent.name == "adapter" else artefact.parent


def writer_of(target: str) -> Callable[[Job, Path], Written]:
    """The function that writes a kind of export into an empty folder.

    Raises:
        LimpetError: there is no such kind.
    """
    if target not in TARGETS:
        listed = "; ".join(f"{name} ({meaning})" for name, meaning in TARGETS.items())
        raise LimpetError(f"There is no export to '{target}'.{nearest(target, TARGETS)} --to takes one of: {listed}.")
    from . import export_folder, export_merged, export_onnx, export_peft, export_weights

    return {
        "adapter": export_folder.write_adapter,
        "merged": export_merged.write,
        "onnx": export_onnx.write,
        "peft": export_peft.write,
        "weights": export_weights.write,
        "hub-folder": export_folder.write_hub,
    }[target]


def _describe(job: Job, target: str, written: Written, parity: Parity, folder: Path) -> None:
    """Write the card, and the same facts for programs."""
    info = job.content.get("info") or {}
    facts = {
        "format": 1,
        "limpet": __version__,
        "target": target,
        "method": job.method,
        "classes": list(job.adapter.classes.names),
        "preprocessing": job.backbone.spec.preprocessing,
        "backbone": {"name": job.backbone.spec.name, "fingerprint": job.backbone.fingerprint},
        "split_hash": info.get("split_hash"),
        "temperature": None if (found := Calibration.from_dict(info.get("calibration"))) is None else found.temperature,
        "parity": {"difference": parity.difference, "limit": parity.limit, "images": parity.images, "same_class": parity.same},
        **written.facts,
    }
    text = json.dumps(facts, indent=1, ensure_ascii=False)
    (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
    write_card(job, target, written, parity, run_folder(job.artefact), folder)


def _settle(part: Path, place: Path, numbered: bool) -> Path:
    """Give a finished folder its name, or with `numbered` the next free one; nothing is ever replaced."""
    for file in part.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
    number = 1
    while True:
        name = place if number == 1 else place.with_name(f"{place.name}-{number}")
        if not name.exists():
            try:
                part.rename(name)
                return name
            except OSError:
                if not name.exists():
                    raise
        if not numbered:
            raise LimpetError(f"{place} was made by another program meanwhile; nothing is written over it.")
        number += 1


def export_command(
    run: Path, target: str, out: Path | None, version: int | None, beside: bool, images: str | None
) -> None:
    """Export and say what came of it."""
    from rich.console import Console

    from .predict import find_images

    console = Console()
    paths = find_images(images)[:256] if images else ()
    folder, parity = export(run, target, out, version=version, beside=beside, images=paths)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    shown = f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.0f} kB"
    listed = ", ".join(sorted(p.name + ("/" if p.is_dir() else "") for p in folder.iterdir()))
    for line in (f"parity: {parity}", f"Wrote {folder} ({shown}): {listed}", f"How to load it: {folder / 'README.md'}"):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
