"""Class weights as a table: one vector a class, with names, for a vector database or a few lines of NumPy."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import export_loading as code
from .csv_files import cell
from .export_job import Job, Written

TABLE, CSV = "classes.npz", "classes.csv"


def write(job: Job, folder: Path) -> Written:
    """Write the class weights of a method whose scores are linear in image features.

    Raises:
        CannotExport: they are not.
    """
    save_table(job, folder)
    unit = job.head.unit
    table = load_table(folder)
    about = [
        f"`{TABLE}` holds `names`, `texts`, `weights` (classes x {job.backbone.embed_dim}), `scale` and `bias`; `{CSV}` the same "
        "vectors as text. Scores are `scale * features @ weights.T + bias`, their softmax the probabilities.",
        "Image features are taken "
        + ("at unit norm" if unit else "as the tower gives them, not normalised")
        + (", from the plain backbone." if job.frozen_tower else ", from the image tower with the adapter in it, not from the "
           "plain backbone: `limpet export RUN --to onnx --beside` writes that tower."),
    ]  # fmt: skip
    return Written(
        answer=lambda images: scores(table, job.features(images, unit)),
        about=about,
        loading=code.weights(job.backbone.spec, job.frozen_tower, unit),
        packages=code.weights_packages(job.backbone.spec, job.frozen_tower),
        facts={"unit_features": unit, "plain_backbone": job.frozen_tower},
    )


def save_table(job: Job, folder: Path) -> None:
    """Write the table as npz and CSV. Where all vectors have one length, it becomes `scale` and they unit vectors."""
    head, classes = job.head, job.adapter.classes
    weights = head.weights.double()
    lengths = weights.norm(dim=1)
    scale = float(lengths.mean())
    one = scale > 0 and bool((lengths / scale - 1).abs().max() < 1e-5)
    scale = scale if one else 1.0
    vectors = (weights / lengths[:, None] if one else weights).float().cpu().numpy()
    names = list(classes.names)
    np.savez(
        folder / TABLE,
        names=np.array(names),
        texts=np.array([classes.text(name) for name in names]),
        weights=vectors,
        bias=head.bias.double().cpu().numpy(),
        scale=np.float64(scale),
    )
    with (folder / CSV).open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["name", "text", "bias", *(f"w{i}" for i in range(vectors.shape[1]))])
        for name, vector, bias in zip(names, vectors, head.bias.tolist(), strict=True):
            rows.writerow([cell(name), cell(classes.text(name)), repr(float(bias)), *(str(value) for value in vector)])


def load_table(folder: Path) -> dict[str, Tensor]:
    """The numbers of a written table."""
    with np.load(folder / TABLE, allow_pickle=False) as stored:
        return {key: torch.as_tensor(stored[key]) for key in ("weights", "bias", "scale")}


def scores(table: dict[str, Tensor], features: Tensor) -> Tensor:
    """Scores (B, C), float64, of image features (B, D)."""
    return table["scale"] * features.double() @ table["weights"].double().T + table["bias"]
