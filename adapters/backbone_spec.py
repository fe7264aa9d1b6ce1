"""What is known of a backbone from its configuration alone, before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

TINY = "limpet-tiny"
HUB = "hf-hub:"
FOLDER = "local-dir:"
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class BackboneSpec:
    """A backbone described by its configuration; plain values only, so it can be written as JSON.

    Numbers that a tower does not have (the patch size of a ResNet, the width of a Hugging Face text tower)
    are 0.

    Attributes:
        name: as the recipe gives it.
        pretrained: weight tag, file or `random`.
        activation: "gelu" or "quick_gelu".
        precision: number format of the loaded weights, "fp32", "bf16", "fp16" (or "fp64" for a model of one's
            own).
        image_tower: "vit" (open_clip's own), "resnet" (CLIP's ModifiedResNet) or "timm".
        text_tower: "transformer" (open_clip's own) or "hf" (Hugging Face).
        causal_text: whether text tokens see only the tokens before them.
        embed_dim: size of the joint space.
        image_size: height of the network input in pixels.
        preprocessing: size, mean, std, interpolation, resize_mode, fill.
        image_pool: how a native ViT makes its feature: "tok", "avg", "attention" or "none"; "" for other
            towers.
        text_pool: "argmax", "eos", "first", "last", "none"; "" for Hugging Face towers.
        multimodal: whether its text feature is read from a token of its own behind the padding, as CoCa's is.
        plain_attention: whether both native towers use plain multi-head attention.
        architecture: the open_clip configuration of a model of one's own (`backbone.architecture`), else None.
    """

    name: str
    pretrained: str | None
    activation: str
    precision: str
    image_tower: str
    text_tower: str
    causal_text: bool
    embed_dim: int
    image_size: int
    patch_size: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    text_width: int
    text_layers: int
    text_heads: int
    context_length: int
    vocab_size: int
    preprocessing: dict[str, Any]
    image_pool: str = "tok"
    text_pool: str = "argmax"
    multimodal: bool = False
    plain_attention: bool = True
    architecture: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, fit for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BackboneSpec:
        """Rebuild a spec from `to_dict`; keys of later versions are ignored."""
        known = {f.name for f in fields(cls)}
        return cls(**{k: v for k, v in data.items() if k in known})


def request(described: Mapping[str, Any], **changes: Any) -> SimpleNamespace:
    """What `FrozenClip.load` needs to load a described backbone (`BackboneSpec.to_dict`) again, with changes."""
    keys = ("name", "pretrained", "activation", "precision", "architecture")
    return SimpleNamespace(**{**{key: described.get(key) for key in keys}, "text_memory": None, **changes})


@dataclass(frozen=True)
class Source:
    """A backbone request resolved to a model configuration and a place for the weights.

    Attributes:
        name: as requested.
        kind: "tiny", "builtin", "hub" or "folder".
        model: open_clip's native model configuration, activation included.
        preprocessing: size, mean, std, interpolation, resize_mode, fill.
        pretrained: weight tag, file, "random" or None.
        precision: number format to cast to after loading.
        weights: open_clip's entry for a weight tag (where to fetch it).
        folder: local folder that holds configuration, weights and tokenizer.
    """

    name: str
    kind: str
    model: dict[str, Any]
    preprocessing: dict[str, Any]
    pretrained: str | None
    precision: str
    weights: dict[str, Any] | None = None
    folder: Path | None = None


def tiny_asset(name: str) -> Path:
    """Return the path of a packaged file of limpet-tiny."""
    return Path(str(resources.files(__package__) / "assets" / name))


def preprocessing(config: Mapping[str, Any], image_size: Any) -> dict[str, Any]:
    """Return complete preprocessing values from a partial configuration, as plain lists and numbers."""
    size = list(image_size) if isinstance(image_size, (list, tuple)) else [image_size, image_size]
    size = [int(s) for s in size] * (2 if len(size) == 1 else 1)
    triple = {
        key: [float(v) for v in value] if isinstance(value, (list, tuple)) else [float(value)] * 3
        for key, value in (
            ("mean", config.get("mean") or OPENAI_MEAN),
            ("std", config.get("std") or OPENAI_STD),
        )
    }
    return {
        "size": size[0] if size[0] == size[1] else size,
        **triple,
        "interpolation": str(config.get("interpolation") or "bicubic"),
        "resize_mode": str(config.get("resize_mode") or "shortest"),
        "fill": int(config.get("fill_color") or 0),
    }


def spec_of(source: Source) -> BackboneSpec:
    """Describe a resolved backbone."""
    model = source.model
    vision, text = model["vision_cfg"], model["text_cfg"]
    layers = vision.get("layers", 12)
    timm, resnet, hf = (
        bool(vision.get("timm_model_name")),
        isinstance(layers, (list, tuple)),
        bool(text.get("hf_model_name")),
    )
    native = not timm and not resnet
    width, size = vision.get("width", 768), source.preprocessing["size"]
    special = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")
    plain = all(
        cfg.get("block_type") in (None, "default") and not any(cfg.get(k) for k in special)
        for cfg in (vision, text)
    )
    pool = (
        ("attention" if vision.get("attentional_pool") else vision.get("pool_type", "tok")) if native else ""
    )
    head = vision.get("head_width", 64)
    return BackboneSpec(
        name=source.name,
        pretrained=source.pretrained,
        activation="quick_gelu" if model.get("quick_gelu") else "gelu",
        precision=source.precision,
        image_tower="timm" if timm else "resnet" if resnet else "vit",
        text_tower="hf" if hf else "transformer",
        causal_text=not hf and not text.get("no_causal_mask", False),
        embed_dim=int(model["embed_dim"]),
        image_size=size if isinstance(size, int) else int(size[0]),
        patch_size=int(vision.get("patch_size") or 16) if native else 0,
        vision_width=0 if timm else int(width),
        vision_layers=0 if timm else sum(layers) if resnet else int(layers),
        vision_heads=0 if timm else width * 32 // head if resnet else width // head,
        text_width=0 if hf else int(text.get("width", 512)),
        text_layers=0 if hf else int(text.get("layers", 12)),
        text_heads=0 if hf else int(text.get("heads", 8)),
        context_length=int(text.get("context_length", 77)),
        vocab_size=0 if hf else int(text.get("vocab_size", 49408)),
        preprocessing=dict(source.preprocessing),
        image_pool=pool,
        text_pool="" if hf else str(text.get("pool_type", "argmax")),
        multimodal="multimodal_cfg" in model or bool(text.get("embed_cls")),
        plain_attention=plain,
        architecture=source.model if source.kind == "architecture" else None,
    )
