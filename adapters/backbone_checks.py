"""What the configuration of a backbone may say: plain sizes and known words, nothing that runs code or fills the memory.

A configuration comes from a recipe, an adapter or a folder, which may be anybody's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import BackboneError

# Limits are far above any published CLIP and far below what stops a machine.
LAYERS, SIDE, TOKENS, WIDTH, WORDS, NUMBERS = 1000, 16_384, 16_384, 65_536, 10_000_000, 20_000_000_000
_SIZES = {
    "": {"embed_dim": WIDTH},
    "vision_cfg": {"image_size": SIDE, "patch_size": SIDE, "width": WIDTH, "head_width": WIDTH, "layers": LAYERS,
                   "attn_pooler_queries": TOKENS, "attn_pooler_heads": WIDTH},
    "text_cfg": {"context_length": TOKENS, "vocab_size": WORDS, "width": WIDTH, "heads": WIDTH, "layers": LAYERS},
    "multimodal_cfg": {"context_length": TOKENS, "vocab_size": WORDS, "width": WIDTH, "heads": WIDTH, "layers": LAYERS,
                       "dim_head": WIDTH, "n_queries": TOKENS, "attn_pooler_heads": WIDTH},
}  # fmt: skip
_LISTS = {"vision_cfg.image_size": 2, "vision_cfg.layers": 4}  # height and width; the stages of a ResNet
_WORDS = ("hf_model_name", "hf_tokenizer_name", "hf_pooler_type", "hf_proj_type", "tokenizer_mode", "pool_type",
          "timm_model_name", "timm_pool", "timm_proj", "pos_embed_type", "block_type", "proj_type")  # fmt: skip
_SWITCHES = ("custom_text", "quick_gelu", "no_causal_mask", "embed_cls", "output_dict", "output_tokens", "nonscalar_logit_scale")
# Settings of the tokenizers' constructors that only change how a text is cut into tokens. All others are refused: some name
# files, and `trust_remote_code` runs the Python that lies beside a tokenizer.
TOKENIZER_SETTINGS = ("clean", "strip_sep_token", "language", "additional_special_tokens", "reduction_mask", "use_fast",
                      "padding_side", "truncation_side")  # fmt: skip
_INTERPOLATIONS = ("bicubic", "bilinear", "random")
_RESIZES = ("shortest", "longest", "squash")


def check_configuration(name: str, whole: Any) -> None:
    """Refuse a configuration that is none, or that says what a backbone cannot be.

    Args:
        name: of the backbone, for messages.
        whole: the content of an `open_clip_config.json`, or its `model_cfg` alone.

    Raises:
        BackboneError: what is wrong, and where.
    """
    if not isinstance(whole, Mapping):
        raise _wrong(name, "it", "keys and values", whole)
    model, prepared = whole.get("model_cfg", whole), _section(whole, "preprocess_cfg")
    for key, section in (("model_cfg", model), ("preprocess_cfg", prepared)):
        if not isinstance(section, Mapping):
            raise _wrong(name, key, "keys and values", section)
    missing = [k for k in ("embed_dim", "vision_cfg", "text_cfg") if k not in model]
    if missing:
        raise BackboneError(
            f"The configuration of the backbone {name} has no {', '.join(missing)}: it is not an open_clip "
            "configuration (open_clip_config.json)."
        )
    for part, sizes in _SIZES.items():
        section = _section(model, part) if part else model
        if not isinstance(section, Mapping):
            raise _wrong(name, part, "keys and values", section)
        place = f"{part}." if part else ""
        foreign = section.get("timm_model_name") or section.get("hf_model_name")  # a tower of another library knows its sizes
        for key, most in sizes.items():
            if section.get(key) is not None or (key in section and not foreign and key != "patch_size"):
                _check_size(name, f"{place}{key}", section[key], most)
        for key in (k for k in _WORDS if not isinstance(section.get(k), str | None)):
            raise _wrong(name, f"{place}{key}", "a text", section[key])
        for key in (k for k in _SWITCHES if not isinstance(section.get(k), bool | None)):
            raise _wrong(name, f"{place}{key}", "true or false", section[key])
        ratio = section.get("mlp_ratio")
        if ratio is not None and not (_is_number(ratio) and 0 < ratio <= 100):
            raise _wrong(name, f"{place}mlp_ratio", "a number up to 100", ratio)
    _check_names(name, model)
    _check_preprocessing(name, prepared)
    if (numbers := least_numbers(model)) > NUMBERS:
        raise BackboneError(f"The configuration of the backbone {name} describes a network of at least {numbers:,} numbers, more "
                            f"than any CLIP has ({NUMBERS:,} are the limit): correct its sizes.")  # fmt: skip


def check_against(name: str, model: Mapping[str, Any], held: int, file: Path) -> None:
    """Refuse a configuration whose network has more numbers than its weights file holds, before it is built.

    Raises:
        BackboneError: they do not belong together.
    """
    numbers = least_numbers(model, tokens=False)
    if numbers > held:
        raise BackboneError(
            f"The weights do not fit the backbone {name}: its configuration describes at least {numbers:,} numbers, and {file} "
            f"holds {held:,}. Check that both are of the same model."
        )


def least_numbers(model: Mapping[str, Any], tokens: bool = True) -> int:
    """How many weights a checked configuration describes at the least, by its sizes; 0 for towers of other libraries.

    Args:
        model: open_clip's configuration.
        tokens: whether to count the token table, of which a file may hold the trained rows alone, as limpet-tiny's does.
    """
    vision, text = model["vision_cfg"], model["text_cfg"]
    total, layers, width = 0, vision.get("layers", 12), vision.get("width", 768)
    if vision.get("timm_model_name"):
        pass
    elif isinstance(layers, list | tuple):
        total += sum(count * 8 * (width << stage) ** 2 for stage, count in enumerate(layers))
    else:
        size, patch = vision.get("image_size", 224), vision.get("patch_size") or 16
        sides = size if isinstance(size, list | tuple) else [size]
        total += _blocks(vision, layers, width) + width * math.prod(max(1, side // patch) for side in (*sides, sides[0])[:2])
    for part in (text, model.get("multimodal_cfg") or {}):
        if part and not part.get("hf_model_name"):
            wide = part.get("width", 512)
            total += _blocks(part, part.get("layers", 12), wide)
            total += wide * (part.get("context_length", 77) + (part.get("vocab_size", 49408) if tokens else 0))
    return total


def _section(whole: Mapping[str, Any], key: str) -> Any:
    """What a configuration has under a key; nothing, where that is null."""
    found = whole.get(key)
    return {} if found is None else found


def _blocks(section: Mapping[str, Any], layers: int, width: int) -> int:
    return int(layers * (4 + 2 * (section.get("mlp_ratio") or 4.0)) * width**2)


def _check_size(name: str, place: str, value: Any, most: int) -> None:
    several = _LISTS.get(place, 0)
    values = value if isinstance(value, list | tuple) and len(value) == several else [value]
    if not all(isinstance(v, int) and not isinstance(v, bool) and 1 <= v <= most for v in values):
        raise _wrong(name, place, f"a whole number from 1 to {most}{f', or {several} of them' if several else ''}", value)


def _check_names(name: str, model: Mapping[str, Any]) -> None:
    """Refuse names and settings that lead other libraries to files and code of their own."""
    timm = model["vision_cfg"].get("timm_model_name") or ""
    if any(sign in timm for sign in "/\\:"):
        raise BackboneError(
            f"The configuration of the backbone {name} takes its image tower from {timm!r}: vision_cfg.timm_model_name is the "
            "name of a model that timm has, like 'vit_base_patch16_siglip_224', not a place."
        )
    for part in ("vision_cfg", "text_cfg", "multimodal_cfg"):
        for key in ("norm_kwargs", "act_kwargs", "tokenizer_kwargs"):
            if not isinstance(_section(model, part).get(key), Mapping | None):
                raise _wrong(name, f"{part}.{key}", "keys and values", model[part][key])
        eps = (_section(model, part).get("norm_kwargs") or {}).get("eps", 0)
        if not (_is_number(eps) and eps >= 0):
            raise _wrong(name, f"{part}.norm_kwargs.eps", "a number from 0 on", eps)
    settings = model["text_cfg"].get("tokenizer_kwargs") or {}
    if settings.get("trust_remote_code"):
        raise BackboneError(
            f"The configuration of the backbone {name} sets text_cfg.tokenizer_kwargs.trust_remote_code, which would run Python "
            "code that lies beside the tokenizer; Limpet reads data only. Remove it, or choose a tokenizer that the "
            "transformers library has."
        )
    unknown = sorted(str(key) for key in settings if key not in (*TOKENIZER_SETTINGS, "trust_remote_code"))
    if unknown:
        raise BackboneError(
            f"The configuration of the backbone {name} sets text_cfg.tokenizer_kwargs.{unknown[0]}, which is not among the settings "
            f"of a tokenizer that Limpet passes on ({', '.join(TOKENIZER_SETTINGS)}): remove it."
        )


def _check_preprocessing(name: str, values: Mapping[str, Any]) -> None:
    for key in ("mean", "std"):
        value = values.get(key)
        numbers: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
        good = len(numbers) in ((3,) if isinstance(value, list | tuple) else (1,))
        if value is not None and not (good and all(_is_number(v) and (key == "mean" or float(v) > 0) for v in numbers)):
            raise _wrong(name, f"preprocess_cfg.{key}", f"three numbers{'' if key == 'mean' else ' above 0'}", value)
    for key, known in (("interpolation", _INTERPOLATIONS), ("resize_mode", _RESIZES)):
        if values.get(key) not in (None, "", *known):
            raise _wrong(name, f"preprocess_cfg.{key}", f"one of {', '.join(known)}", values[key])
    fill = values.get("fill_color")
    if fill is not None and not (_is_number(fill) and 0 <= fill <= 255):
        raise _wrong(name, "preprocess_cfg.fill_color", "a number from 0 to 255", fill)


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number with hundreds of digits
        return False


def _wrong(name: str, place: str, wanted: str, found: Any) -> BackboneError:
    shown = repr(found) if len(repr(found)) <= 60 else f"{repr(found)[:60]}..."
    return BackboneError(f"The configuration of the backbone {name} cannot be used: {place} should be {wanted}; found {shown}.")
