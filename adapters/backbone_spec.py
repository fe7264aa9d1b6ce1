"""What is known of a backbone from its configuration alone, before any weight is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from .errors import BackboneError, nearest

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
        multimodal: whether it is a CoCa model, whose text feature is read behind the padding.
        plain_attention: whether both native towers use plain multi-head attention.
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

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, fit for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BackboneSpec:
        """Rebuild a spec from `to_dict`; keys of later versions are ignored."""
        known = {f.name for f in fields(cls)}
        return cls(**{k: v for k, v in data.items() if k in known})


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


def resolve(config: Any) -> Source:
    """Turn a backbone section (or a bare name) into a model configuration and a place for the weights.

    Args:
        config: a name, or an object with `name` and optionally `pretrained`, `activation`, `precision`.

    Raises:
        BackboneError: unknown names, tags, files or values; a hub that cannot be reached.
    """
    if isinstance(config, str):
        name, pretrained, activation, precision = config, None, None, "fp32"
    else:
        name, pretrained = str(config.name), getattr(config, "pretrained", None)
        activation, precision = getattr(config, "activation", None), getattr(config, "precision", "fp32")
    for key, value, known in (
        ("activation", activation, ("gelu", "quick_gelu", None)),
        ("precision", precision, ("fp32", "bf16", "fp16")),
    ):
        if value not in known:
            words = ", ".join(str(k) for k in known if k)
            raise BackboneError(
                f"`backbone.{key}` is {value!r}; it can be {words}.{nearest(str(value), map(str, known))}"
            )
    if name == TINY:
        # The weights are part of Limpet: a tag left over from another backbone has nothing to say here.
        whole = json.loads(tiny_asset(f"{TINY}.json").read_text(encoding="utf-8"))
        return _source(name, "tiny", whole, None, None, precision=precision)
    if name.startswith(HUB):
        from .backbone_weights import fetch_hub_config

        if pretrained not in (None, "random"):
            raise BackboneError(
                f"`backbone.name={name}` brings its own weights, so `backbone.pretrained={pretrained}` "
                "cannot apply: remove it."
            )
        return _source(
            name, "hub", fetch_hub_config(name.removeprefix(HUB)), pretrained, activation, precision=precision
        )
    if name.startswith(FOLDER) or Path(name).expanduser().is_dir():
        return _from_folder(name, pretrained, activation, precision)
    return _from_builtin(name, pretrained, activation, precision)


def describe(config: Any) -> BackboneSpec:
    """Describe a backbone from its configuration, before weights load.

    Args:
        config: a name, or an object with `name`, `pretrained`, `activation`, `precision`.

    Returns:
        The description; `limpet-tiny` is described without importing torch.

    Raises:
        BackboneError: unknown names, tags or files; a hub that cannot be reached.
    """
    return spec_of(resolve(config))


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
        multimodal="multimodal_cfg" in model,
        plain_attention=plain,
    )


def _source(
    name: str,
    kind: str,
    whole: dict[str, Any],
    pretrained: str | None,
    activation: str | None,
    *,
    precision: str,
    folder: Path | None = None,
) -> Source:
    """Make a source of a complete open_clip_config.json."""
    model = deepcopy(whole.get("model_cfg", whole))
    missing = [k for k in ("embed_dim", "vision_cfg", "text_cfg") if k not in model]
    if missing:
        raise BackboneError(
            f"The configuration of the backbone {name} has no {', '.join(missing)}: it is not an open_clip "
            "configuration (open_clip_config.json)."
        )
    if activation is not None:
        model["quick_gelu"] = activation == "quick_gelu"
    size = model["vision_cfg"].get("image_size", 224)
    return Source(
        name,
        kind,
        model,
        preprocessing(whole.get("preprocess_cfg", {}), size),
        pretrained,
        precision,
        folder=folder,
    )


def _from_folder(name: str, pretrained: str | None, activation: str | None, precision: str) -> Source:
    folder = Path(name.removeprefix(FOLDER)).expanduser()
    config = folder / "open_clip_config.json"
    if not config.is_file():
        found = "it is not a folder" if not folder.is_dir() else "the folder has no such file"
        raise BackboneError(f"The backbone {name} needs {config}, but {found}.")
    try:
        whole = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BackboneError(f"{config} is not valid JSON ({error}).") from error
    if pretrained not in (None, "random"):
        _weights_file(pretrained)
    return _source(name, "folder", whole, pretrained, activation, precision=precision, folder=folder)


def _weights_file(pretrained: str) -> Path:
    path = Path(pretrained).expanduser()
    if not path.is_file():
        raise BackboneError(f"The weights file {pretrained} does not exist.")
    return path


def _from_builtin(name: str, pretrained: str | None, activation: str | None, precision: str) -> Source:
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    plain = name.replace("/", "-")  # OpenAI writes ViT-B/16
    model = open_clip.get_model_config(plain)
    if model is None:
        if "/" in name or name.endswith((".pt", ".pth", ".bin", ".safetensors")):
            raise BackboneError(
                f"The backbone {name!r} is neither a folder with an open_clip_config.json nor a known model "
                "name. For a weights file give the model in `backbone.name` and the file in "
                f"`backbone.pretrained`; a model of the Hugging Face hub is written {HUB}{name}."
            )
        raise BackboneError(
            f"There is no backbone {name!r}. Known are {TINY}, open_clip's {len(open_clip.list_models())} "
            f"models, {HUB}OWNER/NAME and local folders.{nearest(name, [TINY, *open_clip.list_models()])}"
        )
    tags = list_pretrained_tags_by_model(plain)
    known = f"Tags of {plain}: {', '.join(tags)}." if tags else f"open_clip lists no weights for {plain}."
    if pretrained is None:
        raise BackboneError(
            f"`backbone.pretrained` does not say which weights {name} takes. {known} A local file, or "
            "`random` for a seeded untrained model, can be given too."
        )
    entry = None if pretrained == "random" else get_pretrained_cfg(plain, pretrained)
    values = entry or _common_preprocessing(plain, tags)
    if entry:
        trained = "quick_gelu" if entry.get("quick_gelu") else "gelu"
        if activation not in (None, trained):
            raise BackboneError(
                f"The weights {pretrained!r} of {name} were trained with {trained}, so "
                f"`backbone.activation={activation}` would give wrong features: remove it."
            )
        if not model["vision_cfg"].get("timm_model_name") or trained == "quick_gelu":
            activation = trained  # also where the plain name says GELU: the weights decide
    elif pretrained != "random":
        path = Path(pretrained).expanduser()
        if not path.is_file():
            raise BackboneError(
                f"{pretrained!r} is neither a weight tag of {name} nor a file. "
                f"{known}{nearest(pretrained, tags)}"
            )
        variant = open_clip.get_model_config(f"{plain}-quickgelu")
        if activation is None and variant is not None and not model.get("quick_gelu"):
            raise BackboneError(
                f"The file {pretrained} does not say which activation its weights were trained with, and "
                f"{name} exists with two. Set `backbone.activation=quick_gelu` for weights by OpenAI (also "
                "MetaCLIP and DFN), `backbone.activation=gelu` for those by LAION and DataComp."
            )
    if activation is not None:
        model["quick_gelu"] = activation == "quick_gelu"
    size = model["vision_cfg"].get("image_size", 224)
    return Source(
        name, "builtin", model, preprocessing(values, size), pretrained, precision, weights=entry or None
    )


def _common_preprocessing(name: str, tags: list[str]) -> dict[str, Any]:
    """Return the preprocessing that all weights of a model share, such as SigLIP's mean."""
    from open_clip.pretrained import get_pretrained_cfg

    keys = ("mean", "std", "interpolation", "resize_mode")
    found = [{k: get_pretrained_cfg(name, tag).get(k) for k in keys} for tag in tags]
    return found[0] if found and all(f == found[0] for f in found) else {}
