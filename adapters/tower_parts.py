"""Which weights of a tower a configuration chooses: by block, and by what they are part of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .backbone_spec import BackboneSpec
from .errors import RecipeError, nearest
from .layers import per_tower
from .tower_adapter import TowerAdapter, block_prefix
from .towers import tower_of

if TYPE_CHECKING:
    from .backbone import EditableClip

PARTS = {  # what of a native tower, by the parameter's name
    "attention": r"\.attn\.",
    "mlp": r"\.mlp\.",
    "norms": r"(^|\.)(ln_\w+|ls_\d)\.",
    "projection": r"(^|\.)(proj|text_projection)(\.|$)",
    "embeddings": r"(^|\.)(class_embedding|positional_embedding|token_embedding|conv1)(\.|$)",
}


def parts_problem(towers: Sequence[str], layers: Any, parts: Sequence[str], spec: BackboneSpec) -> str | None:
    """Why such a choice cannot be trained on such a backbone, as a sentence, or None."""
    odd = [part for part in parts if part not in PARTS and part != "all"]
    if odd or not parts:
        hint = nearest(odd[0], PARTS) if odd else ""
        return f"method.parts is {list(parts)}: it is [all], or some of {', '.join(PARTS)}.{hint}"
    if spec.precision in ("bf16", "fp16"):
        return (
            f"Weights in {spec.precision} are too coarse to be trained: use backbone.precision=fp32, "
            "and trainer.precision=bf16-mixed for speed."
        )
    native = {"image": spec.image_tower == "vit", "text": spec.text_tower == "transformer"}
    foreign = [tower for tower in towers if not native[tower]]
    if foreign and (layers != "all" or "all" not in parts):
        return (
            f"The {foreign[0]} tower of {spec.name} is not one of open_clip's own transformers: it can be fine-tuned as a "
            "whole only, with method.layers=all and method.parts=[all]."
        )
    if "text" in towers and spec.multimodal:
        return f"{spec.name} is a CoCa model, whose text tower is read behind the padding; use method.towers=image."
    return None


def chosen(model: Any, spec: BackboneSpec, tower: str, layers: Any, parts: Sequence[str]) -> tuple[list[str], int, str | None]:
    """Parameters of a tower that are chosen.

    Args:
        model: the open_clip model.
        spec: its description.
        tower: "image" or "text".
        layers: blocks (see `limpet.layers.choose`); what lies below the first goes with it, what lies above the last, too.
        parts: "all", or keys of `PARTS`.

    Returns:
        Their names, the lowest block that has one, and a sentence about the layers where there is something to say.
    """
    prefix = block_prefix(model, tower)
    everything = [n for n, _ in model.named_parameters() if tower_of(n) == tower]
    if (spec.image_tower != "vit") if tower == "image" else (spec.text_tower != "transformer"):
        return everything, 0, None
    blocks: Any = model.get_submodule(prefix)
    choice = per_tower(layers, tower, len(blocks))
    place = {name: _block(name, prefix, len(blocks)) for name in everything}
    patterns = [""] if "all" in parts else [PARTS[part] for part in parts]
    kept = [n for n, i in place.items() if i in choice.blocks and any(re.search(p, n) for p in patterns)]
    return kept, min((place[name] for name in kept), default=0), choice.note


def copied(adapter: TowerAdapter, extra: Sequence[str] = ()) -> tuple[EditableClip, int]:
    """A copy of an adapter's backbone in which the weights that its configuration chooses can be trained.

    Args:
        adapter: its configuration has `layers` and `parts`; its notes get what there is to say about the layers.
        extra: further parameters of the model that are trained.

    Returns:
        The copy, and the lowest block of the image tower that is trained (0 where none is).

    Raises:
        RecipeError: nothing is left to train.
    """
    config, backbone = adapter.config, adapter.backbone
    towers = adapter.towers(config)
    names, first = [], 0
    for tower in towers:
        found, lowest, note = chosen(backbone.model, backbone.spec, tower, config.layers, config.parts)
        names += found
        adapter.notes += [note] if note and note not in adapter.notes else []
        first = lowest if tower == "image" else first
    if not names:
        raise RecipeError(f"method.parts {list(config.parts)} and method.layers {config.layers} leave nothing to train.")
    return backbone.editable(towers, [*names, *extra]), first


def _block(name: str, prefix: str, depth: int) -> int:
    """Block that a parameter belongs to; those below the blocks count as the first, those above as the last."""
    if name.startswith(f"{prefix}."):
        return int(name[len(prefix) + 1 :].partition(".")[0])
    below = re.search(PARTS["embeddings"], name) or ".ln_pre." in f".{name}"
    return 0 if below else depth - 1
