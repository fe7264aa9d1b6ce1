"""The tokens of the frozen towers: patches of an image and positions of a text, as an adapter reads them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from .blocks import attention_problem, run
from .errors import BackboneError, RecipeError

if TYPE_CHECKING:
    from .backbone import FrozenClip
    from .backbone_spec import BackboneSpec


def block_problem(spec: BackboneSpec, block: Any, key: str = "method.block") -> str | None:
    """Say in a sentence why a block's tokens cannot be read, or None; needs no weights."""
    if block is None:
        return None
    if spec.image_tower != "vit":
        return f"{key} is {block}, but the image tower of {spec.name} is not one of open_clip's own ViTs: leave it null."
    try:
        block_number(spec, block, key)
    except RecipeError as error:
        return str(error)
    return None


def block_number(spec: BackboneSpec, block: Any, key: str = "method.block") -> int | None:
    """The block (from 0) that a recipe names: a whole number (-1 is the last) or a share of the tower's depth.

    Raises:
        RecipeError: the tower has no such block.
    """
    depth = spec.vision_layers
    if block is None:
        return None
    if isinstance(block, float) and 0 < block <= 1:
        return max(math.ceil(block * depth - 1e-9), 1) - 1
    if isinstance(block, int) and not isinstance(block, bool) and -depth <= block < depth:
        return block % depth
    raise RecipeError(
        f"{key} is {block}, but the image tower of {spec.name} has {depth} blocks: give 0 to {depth - 1}, -1 (the last) to "
        f"{-depth}, a share of the depth like 0.5, or null."
    )


def text_tokens_problem(spec: BackboneSpec) -> str | None:
    """Say in a sentence why the tokens of a text tower cannot be read, or None; needs no weights."""
    if spec.multimodal or spec.text_tower != "transformer":
        return (
            f"The tokens of {spec.name}'s text tower cannot be read: this needs one of open_clip's own text "
            "transformers, and neither CoCa nor a Hugging Face tower."
        )
    return None


def image_projection(backbone: FrozenClip) -> Tensor | None:
    """The frozen matrix (W, D) from patch tokens to the joint space, where the image tower has one for each token."""
    visual = backbone.model.visual
    if backbone.spec.image_tower != "vit" or visual.attn_pool is not None:
        return None
    return cast("Tensor | None", visual.proj)


@torch.no_grad()
def image_token_features(backbone: FrozenClip, images: Tensor, block: int | None = None) -> Tensor:
    """Patch tokens (B, P, W) of network input (B, 3, H, W), without gradient, half precision widened to float32.

    Native ViT: patch tokens (no class token) after the final norm, times the projection to the joint space. Other
    towers: places of the last feature map. With `block`, tokens behind this block of a native ViT, each brought to
    mean 0 and variance 1, as the next block's norm would, since their size grows from block to block.
    """
    tokens = backbone.image_patches(images, block)
    if block is not None:
        tokens = _wide(tokens)
        return F.layer_norm(tokens, tokens.shape[-1:])
    projection = image_projection(backbone)
    return _wide(tokens if projection is None else tokens @ projection)


@torch.no_grad()
def token_shape(backbone: FrozenClip, block: int | None = None) -> tuple[int, int]:
    """(P, W) of `image_token_features`."""
    size = backbone.spec.preprocessing["size"]
    height, width = (size, size) if isinstance(size, int) else size
    tokens = image_token_features(backbone, torch.zeros(1, 3, height, width), block)
    return int(tokens.shape[1]), int(tokens.shape[2])


def text_token_features(
    backbone: FrozenClip,
    texts: Sequence[str],
    embedding: Tensor | None = None,
    positions: Tensor | None = None,
    norm: torch.nn.Module | None = None,
) -> Tensor:
    """Text tokens (N, L, W) after the tower's final norm, at all L positions, padding included; not projected.

    Args:
        backbone: whose text tower is used.
        texts: N texts.
        embedding: token embeddings in place of the tower's own; gradients flow to these three.
        positions: positional embeddings in place of the tower's own.
        norm: final norm in place of the tower's own.

    Raises:
        BackboneError: the tower does not show its tokens.
    """
    tower = backbone.text
    if tower is None:
        raise BackboneError(text_tokens_problem(backbone.spec) or f"{backbone.spec.name} has no native text tower.")
    ids = backbone.tokenize(list(texts)).to(backbone.device)
    with torch.autocast(backbone.device.type, enabled=False):
        table = tower.embedding.weight if embedding is None else embedding
        places = tower.positions if positions is None else positions
        x = (table[ids] + places[: ids.shape[1]]).to(tower.dtype)
        if any(map(attention_problem, tower.blocks)):
            for block in tower.blocks:
                x = block(x, attn_mask=tower.mask)
        else:
            x = run(tower.blocks, x, mask=tower.mask)
        return _wide((tower.norm if norm is None else norm)(x))


def _wide(tokens: Tensor) -> Tensor:
    return tokens.float() if tokens.dtype in (torch.bfloat16, torch.float16) else tokens
