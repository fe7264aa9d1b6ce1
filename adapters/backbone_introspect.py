"""Describe a model that is already built, by looking at it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .backbone_spec import BackboneSpec, preprocessing
from .blocks import attention_problem
from .towers import text_tower

PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}


def spec_from_model(model: nn.Module, name: str, given: Mapping[str, Any] | None = None) -> BackboneSpec:
    """Return the spec of an open_clip CLIP or CustomTextCLIP.

    Args:
        model: the built model.
        name: recorded in the spec.
        given: preprocessing values that are known better than the model knows them.
    """
    own: Any = model
    visual = own.visual
    tower = text_tower(model)
    text = getattr(own, "text", own)
    kind = "timm" if hasattr(visual, "trunk") else "resnet" if hasattr(visual, "layer1") else "vit"
    size = visual.image_size
    said = {**getattr(visual, "preprocess_cfg", {}), **(given or {})}
    if "fill" in said:
        said["fill_color"] = said["fill"]
    values = preprocessing(said, said.get("size") or size)
    blocks = list(visual.transformer.resblocks) if kind == "vit" else []
    layers = (visual.layer1, visual.layer2, visual.layer3, visual.layer4) if kind == "resnet" else ()
    every = [*blocks, *(tower.blocks if tower else [])]
    patch = visual.patch_size if kind == "vit" else 0
    side = values["size"] if isinstance(values["size"], int) else values["size"][0]
    return BackboneSpec(
        name=name,
        pretrained=None,
        activation="quick_gelu" if any(type(m).__name__ == "QuickGELU" for m in model.modules()) else "gelu",
        precision=PRECISIONS.get(own.logit_scale.dtype, "fp32"),
        image_tower=kind,
        text_tower="transformer" if hasattr(text, "token_embedding") else "hf",
        causal_text=getattr(text, "attn_mask", None) is not None,
        embed_dim=_embed_dim(own, tower),
        image_size=int(side),
        patch_size=int(patch if isinstance(patch, int) else patch[0]),
        vision_width=int(visual.class_embedding.shape[0])
        if kind == "vit"
        else _resnet_width(visual)
        if layers
        else 0,
        vision_layers=len(blocks) or sum(len(stage) for stage in layers),
        vision_heads=int(blocks[0].attn.num_heads)
        if blocks
        else int(visual.attnpool.num_heads)
        if layers
        else 0,
        text_width=int(tower.embedding.weight.shape[1]) if tower else 0,
        text_layers=len(tower.blocks) if tower else 0,
        text_heads=int(tower.blocks[0].attn.num_heads) if tower else 0,
        context_length=int(own.context_length),
        vocab_size=int(tower.embedding.weight.shape[0]) if tower else 0,
        preprocessing=values,
        image_pool=("attention" if visual.attn_pool is not None else str(visual.pool_type))
        if kind == "vit"
        else "",
        text_pool=tower.pool if tower else "",
        multimodal=hasattr(own, "text_decoder") or getattr(text, "cls_emb", None) is not None,
        plain_attention=all(attention_problem(b) is None for b in every),
    )


def _embed_dim(model: Any, tower: Any) -> int:
    visual = model.visual
    for holder in ("output_dim",):
        if getattr(visual, holder, None):
            return int(getattr(visual, holder))
    if tower is not None and tower.projection is not None:
        weight = getattr(tower.projection, "weight", None)
        return int(tower.projection.shape[1] if weight is None else weight.shape[0])
    return int(model.text.output_dim)


def _resnet_width(visual: Any) -> int:
    return int(visual.bn3.num_features)
