"""A trained tuner as a folder of peft's, for Hugging Face's CLIPModel where the backbone has one, else for open_clip's model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import export_huggingface as hf
from . import export_loading as code
from . import peft_layers
from .export_job import CannotExport, Job, Written, quiet
from .export_weights import TABLE, save_table
from .split_attention import SplitAttention, split

BASE = "base"  # sub-folder for a CLIPModel that no hub holds


def write(job: Job, folder: Path) -> Written:
    """Write a peft folder.

    Raises:
        CannotExport: the method has no tuner of peft's, or an interpolated one that peft's files cannot hold.
    """
    from peft import PeftModel

    adapter: Any = job.adapter
    layers = peft_layers.tuner_layers(adapter._clip.model) if hasattr(adapter, "_clip") else {}
    if not layers:
        target = "merged" if hasattr(adapter, "merged") else "onnx"
        raise CannotExport(f"'{job.method}' is not made of peft's layers, so there is no peft folder. {job.nearest(target)}")
    share = float(adapter.share)
    if share != 1 and not all(map(peft_layers.is_plain_lora, layers.values())):
        raise CannotExport(
            f"'{job.method}' was interpolated after training (share {share:g}), which peft's files hold for plain LoRA only. "
            f"{job.nearest('merged')}"
        )
    trained = {name: p.detach().clone() * (share if ".lora_B." in name else 1) for name, p in adapter.trained.named_parameters()}
    why = hf.problem(job.backbone)
    splits = sorted({name.rpartition(".attn.")[0] for name in layers if ".attn." in name})
    make: Callable[[], Any] = (lambda: hf.model(job.backbone)) if why is None else (lambda: split_copy(job, splits))
    rename: Callable[[str], str] = hf.module_name if why is None else str
    names = {name: rename(name) for name in layers}
    base = hf.checkpoint(job.backbone) if why is None else None
    with quiet():
        model = wrap(make(), list(names.values()), adapter.config, renamed(trained, names))
        model.peft_config["default"].base_model_name_or_path = base or (BASE if why is None else job.backbone.spec.name)
        model.save_pretrained(str(folder))
        if why is None and base is None:
            hf.model(job.backbone).save_pretrained(str(folder / BASE))
        again: Any = PeftModel.from_pretrained(make(), str(folder)).eval()
    save_table(job, folder)
    inner = again.base_model.model
    image: Callable[[Tensor], Tensor] = (lambda part: hf.image_features(inner, part)) if why is None else inner.encode_image
    weights = job.text_weights((lambda ids: hf.text_features(inner, ids)) if why is None else inner.encode_text)

    def answer(images: Tensor) -> Tensor:
        with torch.no_grad():
            scores: Tensor = adapter.answer_scale * F.normalize(image(images), dim=-1) @ weights.T
            return scores

    return Written(
        answer=answer,
        about=_about(job, why, base),
        loading=code.peft_huggingface(job.backbone.spec, base or BASE) if why is None else code.peft_open_clip(job.backbone.spec),
        packages=("transformers", "peft") if why is None else ("limpet", "peft"),
        facts={"split": splits, "base": base or (BASE if why is None else job.backbone.spec.name), "clip_model": why is None},
        front={"library_name": "peft"},
    )


def _about(job: Job, why: str | None, base: str | None) -> list[str]:
    table = f"`{TABLE}` holds the class weights (classes x {job.backbone.embed_dim}), made of the class prompts."
    if why is not None:
        return [
            f"A peft folder under open_clip's names: {job.backbone.spec.name} has no counterpart among Hugging Face's CLIPModels "
            f"({why}). Its attention has to be split into linear layers first, which Limpet does; for use without Limpet, "
            "`limpet export RUN --to merged` writes plain open_clip weights.",
            table,
        ]
    where = (
        f"`{base}` on the hub, the same checkpoint as open_clip's {job.backbone.spec.name} ({job.backbone.spec.pretrained})"
        if base
        else f"in the sub-folder `{BASE}`: the frozen backbone, converted"
    )
    return [f"A standard peft folder for Hugging Face's CLIPModel. The base model is {where}.", table]


def split_copy(job: Job, splits: list[str]) -> Any:
    """A copy of open_clip's model, its tensors shared, the attention of some blocks split into linear layers."""
    model = job.backbone.editable(()).model
    for name in splits:
        split(model.get_submodule(name))
    assert all(isinstance(model.get_submodule(f"{name}.attn"), SplitAttention) for name in splits)
    return model


def renamed(trained: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Tuned tensors under peft's names for files: `base_model.model.<layer>.<tensor>`."""
    result = {}
    for name, tensor in trained.items():
        layer = next(layer for layer in names if name.startswith(f"{layer}."))
        result[f"base_model.model.{names[layer]}{name[len(layer) :]}"] = tensor
    return result


def wrap(model: Any, names: list[str], config: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Put a tuner on the named layers of a model and give it the tuned tensors."""
    from peft import get_peft_model, set_peft_model_state_dict

    wrapped = get_peft_model(model, peft_layers.tuner_config(targets(model, names), config))
    result = set_peft_model_state_dict(wrapped, dict(tensors))
    expected = sum(1 for name, _ in wrapped.named_parameters() if ".default" in name)
    if result.unexpected_keys or expected != len(tensors):
        raise CannotExport(f"peft has no place for {len(result.unexpected_keys) or len(tensors)} of the tuned tensors.")
    return wrapped.eval()


def targets(model: Any, names: list[str]) -> Any:
    """The layers in peft's words: the ends of their names where these mean the same layers, else a pattern."""
    ends = sorted({name.rpartition(".")[2] for name in names})
    meant = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in ends}
    return ends if meant == set(names) else peft_layers.exactly(names)
