"""From the backbone section of a recipe to a model configuration and a place for the weights."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

from .backbone_checks import check_configuration
from .backbone_spec import FOLDER, HUB, TINY, BackboneSpec, Source, preprocessing, spec_of, tiny_asset
from .errors import BackboneError, nearest


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
    own = getattr(config, "architecture", None)
    if own:
        if pretrained is None:
            raise BackboneError(
                "`backbone.architecture` describes a model; `backbone.pretrained` must say which weights it takes: `random` "
                "for a seeded untrained model, or a local file."
            )
        if pretrained != "random":
            _weights_file(pretrained)
        whole = {"model_cfg": own, "preprocess_cfg": {}}
        return _source(name, "architecture", whole, pretrained, activation, precision=precision)
    if name == TINY:
        # The weights are part of Limpet: a tag left over from another backbone has nothing to say here.
        whole = json.loads(tiny_asset(f"{TINY}.json").read_text(encoding="utf-8"))
        return _source(name, "tiny", whole, None, None, precision=precision)
    if name.startswith(HUB):
        from .backbone_hub import fetch_hub_config

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


def _source(
    name: str,
    kind: str,
    whole: Any,
    pretrained: str | None,
    activation: str | None,
    *,
    precision: str,
    folder: Path | None = None,
) -> Source:
    """Make a source of a complete open_clip_config.json."""
    check_configuration(name, whole)
    model = deepcopy(whole.get("model_cfg", whole))
    if activation is not None:
        model["quick_gelu"] = activation == "quick_gelu"
    size = model["vision_cfg"].get("image_size", 224)
    return Source(
        name,
        kind,
        model,
        preprocessing(whole.get("preprocess_cfg") or {}, size),
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
    from .backbone_hub import read_config

    whole = read_config(config)
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
    check_configuration(name, model)  # open_clip reads files of configurations that were added to it, too
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
