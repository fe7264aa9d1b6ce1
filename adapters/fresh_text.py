"""A text tower that starts anew beside an image tower that has learned already."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .towers import tower_of

if TYPE_CHECKING:
    from .backbone import EditableClip

KEPT = "token_embedding.weight"


@torch.no_grad()
def start_anew(clip: EditableClip) -> None:
    """Draw the weights of a native text tower as CLIP does (Radford et al. 2021); the table of tokens stays.

    Words that two towers once agreed to mean the same are taken apart by further training slowly or not at all, even where
    the images now differ: the tower has learned not to look at them.

    Args:
        clip: a copy whose text tower can be trained.
    """
    width, depth = clip.spec.text_width, clip.spec.text_layers
    spread = {
        "in_proj_weight": width**-0.5, "out_proj.weight": (2 * width * depth) ** -0.5, "c_fc.weight": (2 * width) ** -0.5,
        "c_proj.weight": (2 * width * depth) ** -0.5, "positional_embedding": 0.01, "text_projection": width**-0.5,
    }  # fmt: skip
    for name, weight in clip.named_parameters():
        if tower_of(name) != "text" or name.endswith(KEPT):
            continue
        std = next((value for part, value in spread.items() if part in name), None)
        if name.endswith("bias"):
            weight.zero_()
        elif std is not None:
            weight.normal_(std=std)
        elif ".ln_" in f".{name}":
            weight.fill_(1.0)
