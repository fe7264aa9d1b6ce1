"""Trained towers as plain open_clip weights: a folder that open_clip loads by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import backbone_weights
from . import export_loading as code
from .backbone_hub import CONFIG_FILE, WEIGHT_FILES
from .backbone_source import resolve
from .backbone_spec import Source, request
from .export_job import CannotExport, Job, Written
from .export_weights import TABLE, save_table
from .tower_adapter import TowerAdapter


def write(job: Job, folder: Path) -> Written:
    """Write weights, configuration and class weights.

    Raises:
        CannotExport: the method does not change the weights of the towers.
    """
    if not isinstance(job.adapter, TowerAdapter):
        raise CannotExport(refusal(job))
    from safetensors.torch import load_file, save_file

    adapter, source = job.adapter, source_of(job)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in adapter.merged().items()}
    save_file(tensors, folder / WEIGHT_FILES[0], metadata={"format": "pt"})
    described = {"model_cfg": source.model, "preprocess_cfg": preprocess_cfg(source)}
    (folder / CONFIG_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    save_table(job, folder)
    model: Any = backbone_weights.build(source).eval()
    model.load_state_dict(load_file(folder / WEIGHT_FILES[0]))
    weights = job.text_weights(model.encode_text)

    def answer(images: Tensor) -> Tensor:
        with torch.no_grad():
            return adapter.answer_scale * F.normalize(model.encode_image(images), dim=-1) @ weights.T

    towers = adapter.towers(adapter.config)
    return Written(
        answer=answer,
        about=[
            f"A whole CLIP in open_clip's own format, under the original names; the {' and '.join(towers)} "
            f"tower{'s are' if len(towers) > 1 else ' is'} changed by the training.",
            f"`{TABLE}` holds the class weights (classes x {job.backbone.embed_dim}), made of the class prompts by the text tower "
            "in here: `encode_text` gives those of any further class.",
        ],
        loading=code.merged(),
        packages=("open_clip_torch",),
        facts={"towers": list(towers)},
    )


def refusal(job: Job) -> str:
    """Why a method has no merged weights, and what comes nearest."""
    if not job.classifies:
        return f"'{job.method}' orders images beside the frozen towers: there are no changed weights to merge. {job.nearest()}"
    if not job.frozen_tower:
        return (
            f"'{job.method}' adds to the image tower what plain open_clip weights cannot hold, so nothing can be merged. "
            f"{job.nearest('onnx')}"
        )
    try:
        _ = job.head
    except CannotExport:
        targets = ["onnx"]
    else:
        targets = ["weights", "onnx"]
    return f"'{job.method}' leaves the towers as they are: there are no changed weights to merge. {job.nearest(*targets)}"


def source_of(job: Job) -> Source:
    """Configuration of the backbone, in float32."""
    return resolve(request(job.backbone.spec.to_dict(), precision="fp32"))


def preprocess_cfg(source: Source) -> dict[str, Any]:
    """Preprocessing in open_clip's words."""
    known = source.preprocessing
    named = {key: known[key] for key in ("mean", "std", "interpolation", "resize_mode")}
    return {**named, "fill_color": known["fill"]}
