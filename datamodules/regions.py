"""Regions of images: boxes and masks, and what items carry of them.

Boxes are left, top, right, bottom, in pixels of the image or, where `relative`, as shares of its width and height. Items
carry them as shares of the whole image, which is what a network sees that is given the image squashed to its size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .errors import DataError
from .images import UnreadableImage, open_image, read_image, refuse_exhaustion
from .listing import Sample

Box = tuple[float, float, float, float]
MASK_SIZE = 224  # height and width of the masks that items carry
SAME = 0.5  # a box is right where it overlaps the wanted one by more than this (IoU), as in referring expressions


@dataclass(frozen=True)
class View:
    """One view of an object that is seen in several images.

    Attributes:
        file: the image.
        mask: the mask of its foreground, or None.
        weight: its share of the object's score.
    """

    file: Path
    mask: Path | None = None
    weight: float = 1.0


def shares(boxes: Sequence[Box], size: tuple[int, int], where: str, relative: bool = False) -> Tensor:
    """Boxes as shares (K, 4) of an image of (width, height), cut at its border, float32.

    Raises:
        DataError: a box lies outside the image.
    """
    found = torch.tensor([list(box) for box in boxes], dtype=torch.float64).reshape(-1, 4)
    if not relative:
        found = found / torch.tensor([*size, *size], dtype=torch.float64)
    cut = found.clamp(0, 1)
    empty = ((cut[:, 2] <= cut[:, 0]) | (cut[:, 3] <= cut[:, 1])).nonzero().flatten().tolist()
    if empty:
        box = ", ".join(f"{value:g}" for value in boxes[empty[0]])
        unit = "shares of the image" if relative else f"pixels, and the image is {size[0]}x{size[1]}"
        raise DataError(f"The box ({box}) of {where} lies outside the image: boxes are left, top, right, bottom in {unit}.")
    return cut.float()


def read_mask(file: Path, share: float = 0.0) -> Tensor:
    """A mask file as booleans (224, 224): where more than `share` of a cell is not 0.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with open_image(file) as image:
            values = np.asarray(image)
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        refuse_exhaustion(error, file)
        raise DataError(f"The mask {file} cannot be read: {' '.join(str(error).split()).rstrip('.')}.") from None
    if values.ndim == 3:  # the last of 2 or 4 channels is how opaque a pixel is
        values = values[..., : values.shape[-1] - (values.shape[-1] in (2, 4))].max(-1)
    return small_mask(values != 0, share)


def small_mask(mask: Any, share: float = 0.0) -> Tensor:
    """A boolean mask (H, W) brought to (224, 224): where more than `share` of a cell is covered."""
    tensor = torch.from_numpy(np.array(mask, dtype=np.float32))[None, None]
    if share > 0:
        covered = torch.nn.functional.adaptive_avg_pool2d(tensor, MASK_SIZE)
    else:
        covered = torch.nn.functional.adaptive_max_pool2d(tensor, MASK_SIZE)
    return covered[0, 0] > share


def overlaps(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union (K, M) of boxes (K, 4) and (M, 4)."""
    corner = torch.maximum(one[:, None, :2], other[None, :, :2])
    end = torch.minimum(one[:, None, 2:], other[None, :, 2:])
    common = (end - corner).clamp(min=0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (one, other)]
    return common / (areas[0][:, None] + areas[1][None] - common)


class Regions:
    """What an item carries of its regions, key by key.

    Args:
        sample: its `extra` may hold `boxes`, `candidates` (tuples of boxes), `relative`, `masks` (files) and `views`.
        image: the decoded image; a drawn one brings boxes and masks in its `info`.
        transform: the plain transform, which squashes the image to the network's size.
    """

    def __init__(self, sample: Sample, image: Image.Image, transform: Callable[[Image.Image], Tensor]) -> None:
        self.sample, self.image, self.transform = sample, image, transform
        # only drawings say something of themselves there: a file's own notes may have any name
        drawn: dict[str, Any] = {} if sample.file else {str(key): value for key, value in image.info.items()}
        self.facts: dict[str, Any] = {**sample.extra, **drawn}

    def __call__(self, key: str) -> Any:
        """The value of one of `KEYS`."""
        found: Any = KEYS[key](self)
        return found

    def boxes(self, key: str = "boxes") -> Tensor:
        """Boxes (K, 4) of the region, as shares; K may be 0."""
        return shares(self.facts.get(key) or (), self.image.size, self.sample.path, bool(self.facts.get("relative")))

    def masks(self) -> Tensor:
        """Masks (K, 224, 224) of the region, boolean; K may be 0."""
        found = [read_mask(file) for file in self.facts.get("masks") or ()]
        return torch.stack(found) if found else torch.zeros(0, MASK_SIZE, MASK_SIZE, dtype=torch.bool)

    def crops(self, key: str = "boxes") -> Tensor:
        """Each box, or else each mask's bounding box, cut out and brought to the network's size (K, 3, S, S)."""
        boxes = self.boxes(key)
        if key == "boxes":
            boxes = torch.cat([boxes, bounding(self.masks())])
        width, height = self.image.size
        scale = torch.tensor([width, height, width, height])
        parts = [self.image.crop(whole_pixels((box * scale).tolist(), self.image.size)) for box in boxes]
        return torch.stack([self.transform(part) for part in parts]) if parts else self.transform(self.image)[None][:0]

    def target(self) -> Tensor:
        """Which candidates (K,) are right: those that overlap a wanted box by more than half (IoU)."""
        candidates, wanted = self.boxes("candidates"), self.boxes()
        return (overlaps(candidates, wanted) > SAME).any(-1)

    def views(self) -> Tensor:
        """All views of the object (V, 3, S, S)."""
        try:
            return torch.stack([self.transform(read_image(view.file)) for view in self._views()])
        except UnreadableImage as error:
            raise DataError(f"{error} It is a view of {self.sample.path}.") from None

    def view_masks(self) -> Tensor:
        """Foreground (V, 224, 224) of each view, boolean; nothing where there is no mask."""
        none = torch.zeros(MASK_SIZE, MASK_SIZE, dtype=torch.bool)
        return torch.stack([none if view.mask is None else read_mask(view.mask) for view in self._views()])

    def view_weights(self) -> Tensor:
        """Weight of each view (V,), float32, summing to 1."""
        weights = torch.tensor([view.weight for view in self._views()])
        return weights / weights.sum()

    def defect(self) -> Tensor:
        """Where the image is not as it should be (224, 224), boolean; nowhere for a normal one."""
        if "defect" in self.facts:
            return small_mask(self.facts["defect"], share=0.5)
        none = torch.zeros(MASK_SIZE, MASK_SIZE, dtype=torch.bool)
        return torch.stack([none, *(read_mask(f, share=0.5) for f in self.facts.get("masks") or ())]).any(0)

    def _views(self) -> Sequence[View]:
        found: Sequence[View] = self.sample.extra["views"]
        return found


KEYS: dict[str, Callable[[Regions], Any]] = {
    "boxes": Regions.boxes,
    "masks": Regions.masks,
    "crops": Regions.crops,
    "candidates": lambda found: found.boxes("candidates"),
    "candidate_crops": lambda found: found.crops("candidates"),
    "target": Regions.target,
    "views": Regions.views,
    "view_masks": Regions.view_masks,
    "view_weights": Regions.view_weights,
    "defect": Regions.defect,
}


def bounding(masks: Tensor) -> Tensor:
    """Bounding boxes (K, 4) of masks (K, H, W), as shares; an empty mask gives the whole image."""
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(len(masks), 1)
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = (mask.any(axis).nonzero().flatten() for axis in (1, 0))
        if len(rows):
            ends = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            sides = (mask.shape[1], mask.shape[0]) * 2
            box[:] = torch.tensor([float(end) / side for end, side in zip(ends, sides, strict=True)])
    return boxes


def whole_pixels(box: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A box in whole pixels, at least one wide and high, inside an image of (width, height)."""
    left, top = (min(int(np.floor(box[i] + 1e-3)), size[i] - 1) for i in (0, 1))
    right, bottom = (max(int(np.ceil(box[i + 2] - 1e-3)), start + 1) for i, start in ((0, left), (1, top)))
    return left, top, min(right, size[0]), min(bottom, size[1])
