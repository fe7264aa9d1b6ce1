"""Describe a model that is already built, by looking at it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .backbone_spec import BackboneSpec, preprocessing
from .blocks import attention_problem
from .towers import text_tower

# Attributes of modules that change what weights compute and show in none of their shapes; of open_clip, torch, timm and
# transformers.
_SETTINGS = frozenset(
    ("num_heads", "num_attention_heads", "n_heads", "scale", "embed_scale", "eps", "variance_epsilon", "approximate",
     "negative_slope", "pool_type", "text_pool_type", "attn_pool_type", "global_pool", "num_prefix_tokens", "final_ln_after_pool",
     "eos_id", "text_eos_id", "pad_id")
)  # fmt: skip
_OF_HUGGING_FACE = ("model_type", "pad_token_id", "position_embedding_type", "is_decoder", "hidden_act", "feed_forward_proj",
                    "relative_attention_max_distance")  # fmt: skip
_ACTIVATIONS = ("torch.nn.modules.activation", "open_clip")  # other libraries rename theirs; their towers are known by other words
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


def settings_of(model: nn.Module) -> dict[str, Any]:
    """What the same weights could be run with otherwise: heads, epsilons, pooling, mask, activations.

    Returns:
        Plain values, fit for JSON, by names like "image.num_heads": of each tower the values of its modules in their order,
        repetitions left out, or the value alone where it is the same everywhere.
    """
    own: Any = model
    found: dict[str, list[Any]] = {}
    for name, module in model.named_modules():
        if name.startswith("text_decoder"):  # CoCa's captions; no feature comes from it
            continue
        tower = "image" if name.split(".")[0] == "visual" else "text"
        # parameters and buffers are not in vars(): they are weights
        said = {key: value for key, value in vars(module).items() if key in _SETTINGS and _plain(value)}
        kind = type(module).__name__
        if type(module).__module__.startswith(_ACTIVATIONS) and not list(module.children()) and not list(module.parameters()):
            said["functions"] = kind
        for key, value in said.items():
            values = found.setdefault(f"{tower}.{key.removeprefix('text_')}", [])  # CLIP holds its text tower's own
            if not values or values[-1] != value:
                values.append(value)
    text = getattr(own, "text", own)
    config = getattr(text, "config", None)
    if config is not None:
        found.update({f"text.{key}": [getattr(config, key)] for key in _OF_HUGGING_FACE if _plain(getattr(config, key, ...))})
        found["text.pooler"] = [type(getattr(text, "pooler", None)).__name__]
    described = getattr(getattr(own.visual, "trunk", None), "pretrained_cfg", None) or {}
    if isinstance(described, Mapping) and described.get("architecture"):
        found["image.architecture"] = [str(described["architecture"])]  # of timm
    if found.get("text.pool_type") != ["eos"]:
        found.pop("text.eos_id", None)  # a feature is not read there
    found["text.causal"] = [getattr(text, "attn_mask", None) is not None]
    return {key: values[0] if len(values) == 1 else values for key, values in sorted(found.items())}


def _plain(value: Any) -> bool:
    return isinstance(value, str | int | float | None)
