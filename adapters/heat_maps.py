"""Heat maps as pictures: the image beside itself under colours that say how high the map is."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from . import files
from .transforms import squashed

SIDE = 224
_STRENGTH = 0.6  # of the colours over the image


def write(target: Path, image: Any, patches: Tensor, limits: tuple[float, float], mask: Tensor | None = None) -> None:
    """Write a PNG of the image and, right of it, the heat map over it.

    Args:
        target: the PNG file.
        image: PIL image.
        patches: map (rows, columns).
        limits: values that get the coldest and the hottest colour, the same for all pictures that are compared.
        mask: known mask (H, W), boolean; its outline is drawn in white.
    """
    from matplotlib import colormaps
    from PIL import Image

    base = np.asarray(squashed(image.convert("RGB"), SIDE, SIDE), dtype=np.float64) / 255
    low, high = limits
    values = F.interpolate(patches[None, None].float(), size=(SIDE, SIDE), mode="bilinear", align_corners=False)[0, 0]
    level = ((values - low) / max(high - low, 1e-12)).clamp(0, 1).numpy()
    heat = (1 - _STRENGTH) * base.mean(-1, keepdims=True) + _STRENGTH * colormaps["inferno"](level)[..., :3]
    if mask is not None and bool(mask.any()):
        heat[outline(mask)] = 1.0
    pair = np.concatenate([base, np.ones((SIDE, 4, 3)), heat], axis=1)
    buffer = io.BytesIO()
    Image.fromarray((pair * 255).round().astype(np.uint8)).save(buffer, "PNG")
    target.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(target, buffer.getvalue())


def outline(mask: Tensor) -> np.ndarray[Any, Any]:
    """The border (224, 224), boolean, of a mask (H, W), one or two pixels wide, just outside of it."""
    grown = F.interpolate(mask[None, None].float(), size=(SIDE, SIDE), mode="nearest")
    wide = F.max_pool2d(grown, 5, stride=1, padding=2)
    found: np.ndarray[Any, Any] = ((wide - grown)[0, 0] > 0).numpy()
    return found
