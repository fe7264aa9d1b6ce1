"""The adapter itself, as Limpet loads it again: alone, or laid out for the Hugging Face hub."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import artifact
from . import export_loading as code
from .export_job import Job, Written
from .export_parity import answers

HUB_TASKS = {"classification": "zero-shot-image-classification", "ordering": "image-feature-extraction"}


def write_adapter(job: Job, folder: Path) -> Written:
    """Copy tensors and description, and load the copy."""
    for name in (artifact.TENSORS, artifact.INFO):
        shutil.copyfile(job.artefact / name, folder / name)
    again = artifact.load(folder, job.backbone)

    def answer(images: Tensor) -> Tensor:
        with torch.no_grad():
            return answers(again, images)

    size = (folder / artifact.TENSORS).stat().st_size / 1000
    about = [
        f"The adapter alone: `{artifact.TENSORS}` ({size:,.0f} kB) and `{artifact.INFO}`, no code and nothing pickled. Limpet "
        "loads it onto the backbone, whose fingerprint has to agree."
    ]
    if ":" in str(job.content["method"]["name"]):
        method = job.content["method"]["name"]
        about.append(f"The method is code of your own, `{method}`: whoever loads this needs that file in the same place.")
    return Written(answer=answer, about=about, loading=code.limpet(job.adapter.task), packages=("limpet",))


def write_hub(job: Job, folder: Path) -> Written:
    """The same with a card whose head the hub reads; uploading is left to the user."""
    written = write_adapter(job, folder)
    upload = (
        "Nothing is uploaded by Limpet. `huggingface_hub` does it: "
        '`HfApi().create_repo("OWNER/NAME", exist_ok=True)`, then `HfApi().upload_folder(repo_id="OWNER/NAME", folder_path=".")`; '
        "`huggingface_hub.snapshot_download` brings it back."
    )
    return Written(
        answer=written.answer,
        about=[*written.about, upload],
        loading=written.loading,
        packages=written.packages,
        front=front(job),
    )


def front(job: Job) -> Mapping[str, Any]:
    """Entries of the card's head, in the hub's words."""
    base = job.backbone.spec.name.removeprefix("hf-hub:") if job.backbone.spec.name.startswith("hf-hub:") else None
    return {
        "library_name": "limpet",
        "pipeline_tag": HUB_TASKS.get(job.adapter.task, "image-feature-extraction"),
        "tags": ["limpet", "clip", "few-shot", job.method],
        **({"base_model": base} if base else {}),
    }
